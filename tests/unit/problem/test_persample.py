import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.data import DataLoader

from afterfit.curvature import diagonal
from afterfit.curvature.jacobian import jacobian_rows
from afterfit.problem import Batches, Categorical, Gaussian, Problem, gradients, losses, outputs
from afterfit.problem.persample import batch_losses, total_gradient
from tests import truth
from tests.cases import make_case

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def rows(problem: Problem, data: Batches) -> Tensor:
    return torch.cat([part for _, part in gradients(problem, data)])


def require_equals_truth(problem: Problem, data: Batches) -> None:
    assert_close(outputs(problem, data), truth.outputs(problem, data), **EXACT)
    assert_close(losses(problem, data), truth.losses(problem, data), **EXACT)
    assert_close(rows(problem, data), truth.gradients(problem, data), **EXACT)
    assert_close(total_gradient(problem, data), truth.gradients(problem, data).sum(0), **EXACT)


class Bag(nn.Module):
    """Torch's own bag of embeddings: its gradient has no batching rule, its jvp is missing."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.bag = nn.EmbeddingBag(6, 3, mode="mean", padding_idx=0)
        self.head = nn.Linear(3, 2)

    def forward(self, tokens: Tensor, offsets: Tensor | None = None) -> Tensor:
        return self.head(self.bag(tokens, offsets).tanh())


class Recurrent(nn.Module):
    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.layer = nn.LSTM(3, 4, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][:, -1])


class Branching(nn.Linear):
    """Looks at the values of its input, which vmap cannot."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.Linear.forward(self, x if x.isfinite().all() else x.nan_to_num())


class Partial(nn.Module):
    """Has a layer that it does not use."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.used, self.unused = nn.Linear(3, 2), nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


def make(build: type[nn.Module]) -> Problem:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(5)
        return Problem.from_module(build().double(), Categorical())


LABELS = torch.tensor([0, 1, 1, 0, 1])
VECTORS = torch.linspace(-1, 1, 15, dtype=torch.float64).view(5, 3)


def test_bags_of_padded_tokens(generator):
    tokens = torch.randint(1, 6, (5, 4), generator=generator) * (torch.arange(4) < 3)
    require_equals_truth(make(Bag), Batches((tokens, LABELS), batch_size=2))


def test_bags_of_tokens_with_offsets_are_differentiated_one_at_a_time():
    bags = [torch.tensor(bag) for bag in ([1, 2], [3], [4, 5, 1], [2, 2], [5])]

    def collate(items):
        texts, labels = zip(*items, strict=True)
        starts = torch.tensor([0, *[len(text) for text in texts[:-1]]]).cumsum(0)
        return torch.cat(texts), starts, torch.tensor(labels)

    loader = DataLoader(list(zip(bags, LABELS, strict=True)), batch_size=3, collate_fn=collate)
    require_equals_truth(make(Bag), Batches(loader))


def test_recurrent_networks(generator):
    x = torch.randn(5, 4, 3, dtype=torch.float64, generator=generator)
    require_equals_truth(make(Recurrent), Batches((x, LABELS), batch_size=2))


def test_networks_that_branch_on_values():
    problem = make(lambda: Branching(3, 2))
    require_equals_truth(problem, Batches((VECTORS, LABELS), batch_size=2))


def test_parameters_that_are_not_used_have_gradient_zero():
    problem, data = make(Partial), Batches((VECTORS, LABELS), batch_size=2)
    require_equals_truth(problem, data)
    assert bool((rows(problem, data)[:, -6:] == 0).all())


def test_gradients_are_taken_even_where_the_user_turned_them_off():
    case = make_case("mlp", "gaussian")
    expected = truth.gradients(case.problem, case.data)
    with torch.no_grad():
        assert_close(rows(case.problem, case.data), expected, **EXACT)
        assert_close(total_gradient(case.problem, case.data), expected.sum(0), **EXACT)


def test_an_error_of_the_network_itself_is_shown():
    problem = make(lambda: nn.Linear(3, 2))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        next(gradients(problem, Batches((torch.zeros(5, 4).double(), LABELS))))


@pytest.mark.parametrize(
    "labels", [torch.tensor([0, 1, 2, 0, 1]), torch.eye(2)[LABELS]], ids=["range", "one-hot"]
)
def test_targets_that_do_not_fit_are_refused_before_anything_is_computed(labels: Tensor):
    problem, data = make(lambda: nn.Linear(3, 2)), Batches((VECTORS, labels))
    for ask in (losses, lambda *a: next(gradients(*a)), total_gradient):
        with pytest.raises(ValueError, match="Categorical: "):
            ask(problem, data)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_its_sample(value: float):
    x = VECTORS.clone()
    x[3, 1] = value
    data = Batches((x, LABELS), batch_size=2, ids=["a", "b", "c", "the bad one", "e"])
    with pytest.raises(ValueError, match=r"loss of sample the bad one is (nan|inf) \(1 such"):
        losses(make(lambda: nn.Linear(3, 2)), data)


def test_losses_of_one_batch_are_differentiable():
    case = make_case("mlp", "gaussian")
    at = truth.leaves(case.problem)
    found = batch_losses(case.problem, at, next(iter(case.data)))
    parts = torch.autograd.grad(found.sum(), tuple(at.values()))
    assert_close(truth.flat(parts), truth.gradients(case.problem, case.data)[:3].sum(0), **EXACT)


def test_losses_take_the_buffers_of_a_member():
    case = make_case("batch-norm", "gaussian")
    shifted = {name: value + 1 for name, value in case.problem.buffers.items()}
    changed = losses(case.problem, case.data, {**case.problem.params, **shifted})
    assert (changed - losses(case.problem, case.data)).abs().min() > 1e-3


def test_images_with_one_output_and_flat_targets(generator):
    x = torch.randn(5, 2, 4, 4, dtype=torch.float64, generator=generator)
    module = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Flatten(), nn.Linear(8, 1)).double()
    problem = Problem.from_module(module, Gaussian())
    require_equals_truth(problem, Batches((x, VECTORS[:, 0]), batch_size=2))


@pytest.fixture
def attempts(monkeypatch) -> list[int]:
    """Grows by one whenever something is mapped over samples."""
    seen: list[int] = []

    def counting(function, **settings):
        mapped = VMAP(function, **settings)

        def call(*arguments):
            seen.append(1)
            return mapped(*arguments)

        return call

    monkeypatch.setattr(torch.func, "vmap", counting)
    return seen


VMAP = torch.func.vmap
BATCHES = Batches((VECTORS, LABELS), batch_size=2)


@pytest.mark.parametrize(
    "ask",
    [
        rows,
        lambda p, d: torch.cat([part for _, part in jacobian_rows(p, d)]),
        diagonal,
    ],
    ids=["gradients", "jacobian", "layers"],
)
def test_a_network_that_cannot_be_mapped_is_tried_once(ask, attempts):
    ask(make(lambda: Branching(3, 2)), BATCHES)
    assert len(attempts) == 1


class OneByOne(nn.Linear):
    """Fails for a reason of its own where it is mapped, as a kernel that runs out of handles."""

    def forward(self, x: Tensor) -> Tensor:
        if VMAPPED:
            raise RuntimeError("cuBLAS handle could not be made")
        return nn.Linear.forward(self, x)


VMAPPED: list[int] = []


def test_an_error_that_only_the_mapped_way_raises_is_not_swallowed(monkeypatch):
    def mapped(function, **settings):
        def call(*arguments):
            VMAPPED.append(1)
            try:
                return VMAP(function, **settings)(*arguments)
            finally:
                VMAPPED.clear()

        return call

    monkeypatch.setattr(torch.func, "vmap", mapped)
    problem = make(lambda: OneByOne(3, 2))
    for ask in (rows, lambda p, d: next(jacobian_rows(p, d)), diagonal):
        with pytest.warns(RuntimeWarning, match="cuBLAS handle could not be made") as caught:
            ask(problem, BATCHES)
        assert len(caught) == 1
    assert_close(total_gradient(problem, BATCHES), truth.gradients(problem, BATCHES).sum(0))
