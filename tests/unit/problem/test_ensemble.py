from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from afterfit.problem import (
    Ensemble,
    Gaussian,
    Member,
    MemberStore,
    Problem,
    Sampler,
    TrainingStream,
)
from afterfit.problem.ensemble import MemoryStore, Store, fingerprint, settings_key
from afterfit.problem.persample import unflatten
from tests.cases import NETWORKS, make_case, make_module

CPU = torch.device("cpu")


def make_member(chain: int = 0, stage: int = 0, seen: Tensor | None = None) -> Member:
    problem = make_case("batch-norm", "gaussian").problem
    params = {n: value + chain + 10 * stage for n, value in problem.params.items()}
    return Member({**params, **problem.buffers}, chain, stage, seen)


def require_same(first: Member | None, second: Member) -> None:
    assert first is not None
    assert (first.chain, first.stage) == (second.chain, second.stage)
    assert first.params.keys() == second.params.keys()
    for name, value in second.params.items():
        assert first.params[name].dtype == value.dtype
        assert torch.equal(first.params[name], value)
    if second.seen is None:
        assert first.seen is None
    else:
        assert torch.equal(first.seen.nan_to_num(-1), second.seen.nan_to_num(-1))


@pytest.fixture(params=["memory", "disk"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return MemoryStore() if request.param == "memory" else MemberStore(tmp_path / "new", "key")


@pytest.mark.parametrize("seen", [None, torch.tensor([0.5, float("nan"), 2.0])])
def test_a_member_comes_back_as_it_was(store: Store, seen: Tensor | None):
    member = make_member(chain=3, stage=12, seen=seen)
    assert store.load(3, 12, CPU) is None
    store.save(member)
    require_same(store.load(3, 12, CPU), member)
    assert store.load(3, 11, CPU) is None


def test_a_member_that_is_saved_again_replaces_the_first(store: Store):
    store.save(make_member())
    changed = replace(make_member(), params={"w": torch.ones(2)})
    store.save(changed)
    require_same(store.load(0, 0, CPU), changed)


def test_members_may_be_views_of_one_tensor(store: Store):
    like = make_case("mlp", "gaussian").problem.params
    vector = torch.arange(32, dtype=torch.float64)
    stacked = torch.arange(12.0).view(4, 3)
    member = Member(unflatten(vector, like), 0, 0, seen=stacked[:, 1])
    store.save(member)
    require_same(store.load(0, 0, CPU), member)


def test_members_may_require_gradients(store: Store):
    member = Member(
        {"w": torch.ones(2, requires_grad=True)}, 0, 0, torch.ones(3, requires_grad=True)
    )
    store.save(member)
    require_same(store.load(0, 0, CPU), member)


def test_the_folder_holds_a_file_for_each_member_and_nothing_else(tmp_path: Path):
    store = MemberStore(tmp_path, "key")
    for chain, stage in ((0, 0), (0, 1), (12, 3)):
        store.save(make_member(chain, stage))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["000-000.safetensors", "000-001.safetensors", "012-003.safetensors"]


def test_a_file_that_was_not_finished_is_ignored(tmp_path: Path):
    store = MemberStore(tmp_path, "key")
    store.save(make_member())
    whole = store.path(0, 0).read_bytes()
    store.path(0, 0).unlink()
    store.path(0, 0).with_suffix(".123.tmp").write_bytes(whole[: len(whole) // 2])
    assert store.load(0, 0, CPU) is None
    store.save(make_member())
    require_same(store.load(0, 0, CPU), make_member())


def test_a_run_that_dies_while_it_writes_leaves_the_old_member(tmp_path: Path, monkeypatch):
    store = MemberStore(tmp_path, "key")
    store.save(make_member())

    def die(tensors: object, name: str, metadata: object) -> None:
        Path(name).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("afterfit.problem.ensemble.save_file", die)
    with pytest.raises(KeyboardInterrupt):
        store.save(replace(make_member(), params={"w": torch.ones(2)}))
    require_same(store.load(0, 0, CPU), make_member())


def test_a_member_of_another_run_is_refused(tmp_path: Path):
    MemberStore(tmp_path, "first").save(make_member())
    said = r"000-000\.safetensors belongs to another run: .* is first, expected second"
    with pytest.raises(ValueError, match=said):
        MemberStore(tmp_path, "second").load(0, 0, CPU)


def test_a_file_of_another_program_is_refused(tmp_path: Path):
    store = MemberStore(tmp_path, "key")
    save_file({"weight": torch.ones(2)}, store.path(0, 0))
    with pytest.raises(ValueError, match="belongs to another run"):
        store.load(0, 0, CPU)


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-9], lambda b: b[:4], lambda _: b"", lambda b: b"\xff" + b]
)
def test_a_damaged_file_is_refused_and_named(tmp_path: Path, damage):
    store = MemberStore(tmp_path, "key")
    store.save(make_member())
    store.path(0, 0).write_bytes(damage(store.path(0, 0).read_bytes()))
    with pytest.raises(
        ValueError, match=r"000-000\.safetensors cannot be read .*remove it and run"
    ):
        store.load(0, 0, CPU)


def test_an_ensemble_reads_its_members_in_order_again_and_again(store: Store):
    keys = [(1, 0), (0, 0), (0, 2)]
    for chain, stage in keys:
        store.save(make_member(chain, stage))
    ensemble = Ensemble(keys, store)
    assert len(ensemble) == 3
    for _ in range(2):
        for member, key in zip(ensemble, keys, strict=True):
            require_same(member, make_member(*key))


def test_an_ensemble_that_lost_a_member_says_which(store: Store):
    store.save(make_member(0, 0))
    ensemble = Ensemble([(0, 0), (0, 1)], store)
    with pytest.raises(FileNotFoundError, match="member 0-1 is gone"):
        list(ensemble)


@pytest.mark.parametrize("network", list(NETWORKS))
def test_the_fingerprint_knows_parameters_and_buffers(network: str):
    problem = make_case(network, "gaussian").problem
    name = fingerprint(problem)
    assert name == fingerprint(make_case(network, "gaussian").problem)
    for part in ("params", "buffers"):
        for key, value in getattr(problem, part).items():
            changed = value.clone()
            changed.view(-1)[-1] += 1
            other = replace(problem, **{part: {**getattr(problem, part), key: changed}})
            assert fingerprint(other) != name


def test_the_fingerprint_knows_names_shapes_and_the_last_bit():
    module = nn.Linear(2, 3, bias=False)
    problem = Problem.from_module(module, Gaussian())
    weight = problem.params["weight"]
    last_bit = torch.nextafter(weight, torch.full_like(weight, 9.0))
    others = ({"other": weight}, {"weight": weight.view(2, 3)}, {"weight": last_bit})
    names = {
        fingerprint(replace(problem, params=params)) for params in ({"weight": weight}, *others)
    }
    assert len(names) == 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_any_precision_has_a_fingerprint(dtype: torch.dtype):
    module = make_module("batch-norm", "gaussian").to(dtype)
    assert len(fingerprint(Problem.from_module(module, Gaussian()))) == 24


def test_the_key_depends_on_the_network_and_on_every_setting():
    first, second = (make_case(network, "gaussian").problem for network in ("linear", "mlp"))
    keys = {
        settings_key(first, 1, "a"),
        settings_key(first, 1, "b"),
        settings_key(first, 2, "a"),
        settings_key(first, 1),
        settings_key(first, "1a"),
        settings_key(second, 1, "a"),
    }
    assert len(keys) == 6
    assert settings_key(first, 1, "a") in keys


def test_anything_that_walks_is_a_sampler():
    class Standing:
        def walk(
            self, problem: Problem, fit: TrainingStream, store: Store | None = None
        ) -> Iterator[Member]:
            yield Member(problem.params, 0, 0)

    assert isinstance(Standing(), Sampler)
    assert isinstance(MemoryStore(), Store)
    assert isinstance(MemberStore(Path(), "key"), Store)
