import copy
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from afterfit.problem import (
    Batch,
    Batches,
    Gaussian,
    Member,
    MemberStore,
    Problem,
    TrainingStream,
    gradients,
    linearize,
    losses,
    outputs,
    restrict,
)
from afterfit.problem.ensemble import fingerprint
from afterfit.problem.persample import total_gradient
from afterfit.problem.problem import move
from tests.cases import NETWORKS, make_case, make_data, make_module

EXACT = {"rtol": 1e-12, "atol": 1e-12}
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
every_network = pytest.mark.parametrize("network", list(NETWORKS))


def state_of(module: nn.Module) -> dict[str, Any]:
    """Everything of a module that one could notice to have changed."""
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    return {
        "bits": {name: value.detach().clone() for name, value in tensors.items()},
        "places": {name: (id(value), value.data_ptr()) for name, value in tensors.items()},
        "versions": {name: value._version for name, value in tensors.items()},
        "learns": {name: value.requires_grad for name, value in tensors.items()},
        "grads": {name: value.grad is None for name, value in tensors.items()},
        "modes": [part.training for part in module.modules()],
        "hooks": [dict(getattr(part, kind)) for part in module.modules() for kind in HOOKS],
        "attributes": [sorted(vars(part)) for part in module.modules()],
    }


def require_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    bits = before.pop("bits"), after.pop("bits")
    assert before == after
    assert bits[0].keys() == bits[1].keys()
    assert all(torch.equal(bits[0][name], bits[1][name]) for name in bits[0])


def use_everything(problem: Problem, data: Batches, folder: Path) -> None:
    """Call each public function once."""
    everything = {**problem.params, **problem.buffers}
    outputs(problem, data)
    losses(problem, data, everything)
    for _ in gradients(problem, data):
        total_gradient(problem, data)
    losses(linearize(problem), data)
    losses(restrict(problem, "*bias"), data)
    MemberStore(folder, "key").save(Member(everything, 0, 0))
    fingerprint(problem)
    for batch, _ in zip(TrainingStream(data, batch_size=3).batches(seed=0), range(4), strict=False):
        state = {name: value.clone() for name, value in everything.items()}
        leaves = [state[name].requires_grad_() for name in problem.params]
        found = problem.train_forward(state, batch.inputs)
        problem.likelihood.loss(found, batch.targets).sum().backward()
        torch.optim.SGD(leaves, lr=0.1).step()
        problem.train_forward(problem.params, batch.inputs)


@every_network
def test_the_users_module_is_never_touched(network: str, tmp_path: Path):
    module = make_module(network, "gaussian")
    for part in list(module.modules())[1::2]:
        part.eval()  # a mixture of modes
    next(module.parameters()).requires_grad_(requires_grad=False)
    module.register_forward_hook(lambda *_: None)
    before = state_of(module)

    problem = Problem.from_module(module, Gaussian())
    require_same(before, state_of(module))
    before = state_of(module)

    use_everything(problem, make_data(network, "gaussian"), tmp_path)
    require_same(before, state_of(module))


@pytest.mark.usefixtures("random_state_is_kept")
@every_network
def test_what_is_deterministic_leaves_the_random_state_alone(network: str):
    module, data = make_module(network, "gaussian"), make_data(network, "gaussian")
    problem = Problem.from_module(module, Gaussian())
    outputs(problem, data), losses(problem, data), list(gradients(problem, data))
    total_gradient(problem, data), losses(linearize(problem), data), fingerprint(problem)
    next(TrainingStream(data).batches(seed=3))


def run_without_type_checks(script: str) -> None:
    """Run in a process of its own: the checks draw random numbers and cannot be pickled."""
    paths = {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", script], env={**os.environ, **paths}, check=True)


def test_the_random_state_of_python_is_kept():
    run_without_type_checks("""
import random
import torch
from afterfit.problem import Batches, Gaussian, Problem, TrainingStream, gradients, losses
from afterfit.problem.randomness import preserved_random_state
from torch.utils.data import DataLoader

rows = [(torch.ones(2), 0.0) for _ in range(9)]
before = random.getstate()
problem = Problem.from_module(torch.nn.Linear(2, 1), Gaussian())
losses(problem, Batches(rows)), list(gradients(problem, Batches(rows)))
for data in (Batches(rows), DataLoader(rows, shuffle=True)):
    stream = TrainingStream(data, augment=lambda x, generator: random.random()).batches(seed=0)
    drawn = [next(stream).inputs for _ in range(3)]
    assert len(set(drawn)) == 3, drawn
try:
    with preserved_random_state(0):
        random.random() / 0
except ZeroDivisionError:
    pass
assert random.getstate() == before
""")


@every_network
def test_the_problem_does_not_follow_later_changes_of_the_module(network: str):
    module, data = make_module(network, "gaussian"), make_data(network, "gaussian")
    problem = Problem.from_module(module, Gaussian())
    before = losses(problem, data)
    with torch.no_grad():
        for value in (*module.parameters(), *module.buffers()):
            value.zero_()
    assert torch.equal(losses(problem, data), before)
    assert fingerprint(problem) == fingerprint(make_case(network, "gaussian").problem)


@every_network
def test_no_call_changes_the_problem(network: str):
    problem, data = make_case(network, "gaussian").problem, make_data(network, "gaussian", 7)
    before, name = losses(problem, data), fingerprint(problem)
    params = {key: value.clone() for key, value in problem.params.items()}
    for batch in data:
        problem.train_forward(problem.params, batch.inputs)
    assert fingerprint(problem) == name
    assert torch.equal(losses(problem, data), before)
    assert all(torch.equal(value, params[key]) for key, value in problem.params.items())
    assert not any(value.requires_grad for value in problem.params.values())


def test_train_forward_is_the_module_in_train_mode():
    module, data = make_module("batch-norm", "gaussian"), make_data("batch-norm", "gaussian", 7)
    problem, (batch,) = Problem.from_module(module, Gaussian()), data
    buffers = {name: value.clone() for name, value in problem.buffers.items()}
    found = problem.train_forward({**problem.params, **buffers}, batch.inputs)
    twin = copy.deepcopy(module).train()
    assert_close(found, twin(batch.inputs).detach(), **EXACT)
    for name, value in twin.named_buffers():
        assert_close(buffers[name], value, **EXACT)
        assert not torch.equal(buffers[name], problem.buffers[name])


class Counting(nn.Linear):
    """Multiplies its output by the number of calls."""

    def __init__(self) -> None:
        nn.Linear.__init__(self, 3, 2)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.calls * nn.Linear.forward(self, x)


def test_train_forward_starts_from_the_trained_buffers_where_none_are_passed():
    problem, x = Problem.from_module(Counting(), Gaussian()), torch.ones(4, 3)
    first, second = (problem.train_forward(problem.params, x) for _ in range(2))
    assert torch.equal(first, second)

    state = {**problem.params, "calls": torch.zeros(())}
    first, second = (problem.train_forward(state, x) for _ in range(2))
    assert torch.equal(2 * first, second)


def test_buffers_that_are_passed_move_the_normalization():
    case = make_case("batch-norm", "gaussian")
    shifted = {name: value + 1 for name, value in case.problem.buffers.items()}
    _, inputs, _ = case.data.fetch(torch.arange(7))
    module = make_module("batch-norm", "gaussian").eval()
    module.load_state_dict({**case.problem.params, **shifted})
    found = case.problem.forward({**case.problem.params, **shifted}, inputs)
    assert_close(found, module(inputs).detach(), **EXACT)
    assert torch.equal(case.problem.forward(shifted, inputs), found)


def test_dropout_is_on_in_train_forward_and_off_in_forward():
    case = make_case("mlp", "gaussian")
    problem, (batch, *_) = case.problem, case.data
    first, second = (problem.train_forward(problem.params, batch.inputs) for _ in range(2))
    assert not torch.equal(first, second)
    first, second = (problem.forward(problem.params, batch.inputs) for _ in range(2))
    assert torch.equal(first, second)


def test_what_the_caller_leaves_out_is_that_of_the_trained_network():
    case = make_case("mlp", "gaussian")
    part = {"0.weight": case.problem.params["0.weight"] + 1}
    _, inputs, _ = case.data.fetch(torch.arange(7))
    expected = case.problem.forward({**case.problem.params, **part}, inputs)
    assert torch.equal(case.problem.forward(part, inputs), expected)


def test_threads_do_not_mix_their_parameters():
    module, data = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 2)), torch.ones(40, 64)
    problem = Problem.from_module(module, Gaussian())
    points = [{name: i * value for name, value in problem.params.items()} for i in range(40)]
    expected = [problem.forward(point, data) for point in points]
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda point: [problem.forward(point, data) for _ in range(20)], points)
    for outputs_of_one, right in zip(found, expected, strict=True):
        assert all(torch.equal(one, right) for one in outputs_of_one)


def test_a_problem_travels_to_another_process():
    run_without_type_checks("""
import cloudpickle
import torch
from afterfit.problem import Batches, Gaussian, Problem, linearize, losses, restrict

network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
problem = Problem.from_module(network, Gaussian())
data = Batches((torch.ones(4, 2), torch.ones(4, 3)))
for sent in (problem, linearize(problem), restrict(problem, "0.*")):
    arrived = cloudpickle.loads(cloudpickle.dumps(sent))
    assert torch.equal(losses(arrived, data), losses(sent, data))
""")


def test_names_that_the_network_does_not_have_are_refused():
    case = make_case("mlp", "gaussian")
    with pytest.raises(ValueError, match=r"no parameters or buffers \['0\.wieght'\]"):
        case.problem.forward({"0.wieght": torch.zeros(5, 3)}, torch.zeros(1, 3))


def test_a_problem_knows_its_normalizations():
    found = {name: make_case(name, "gaussian").problem.normalizations for name in NETWORKS}
    assert found.pop("batch-norm") == ("1",)
    assert found.pop("attention") == ("layer.norm1", "layer.norm2")
    assert set(found.values()) == {()}
    attention = make_case("attention", "gaussian").problem
    assert restrict(attention, "layer.norm2.*|head.*").normalizations == ("layer.norm2",)


def test_a_problem_knows_its_tables_of_embeddings():
    network = nn.Sequential(nn.EmbeddingBag(9, 4), nn.Linear(4, 3))
    problem = Problem.from_module(network, Gaussian())
    assert problem.lookups == ("0",)
    assert restrict(problem, "1.*").lookups == ()


def test_a_problem_knows_its_size_its_type_and_its_place():
    problem = make_case("linear", "gaussian").problem
    assert problem.num_params == 8
    assert problem.dtype == torch.float64
    assert problem.device == torch.device("cpu")


def test_moving_keeps_the_structure():
    x = torch.ones(2)
    moved = move({"a": (x, [x, 3]), "b": None}, torch.device("meta"))
    assert moved["a"][0].device.type == moved["a"][1][0].device.type == "meta"
    assert isinstance(moved["a"][1], list)
    assert moved["a"][1][1] == 3
    assert moved["b"] is None
    batch = move(Batch(x.long(), x, x), torch.device("meta"))
    assert isinstance(batch, Batch)
    assert batch.index.device.type == "meta"
