import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune
from torch.testing import assert_close

from afterfit.problem import (
    Batches,
    Categorical,
    Gaussian,
    Member,
    MemberStore,
    PerSample,
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
from tests import truth
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


def test_the_random_state_of_python_is_kept():
    script = """
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
"""
    paths = {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", script], env={**os.environ, **paths}, check=True)


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


def test_train_forward_starts_from_the_trained_buffers_where_none_are_passed():
    module = nn.Sequential(parametrizations.spectral_norm(nn.Linear(3, 2))).double()
    problem, x = Problem.from_module(module, Gaussian()), torch.ones(4, 3, dtype=torch.float64)
    first, second = (problem.train_forward(problem.params, x) for _ in range(2))
    assert torch.equal(first, second)  # the power iteration did not go on from the first call


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


def test_names_that_the_network_does_not_have_are_refused():
    case = make_case("mlp", "gaussian")
    with pytest.raises(ValueError, match=r"no parameters or buffers \['0\.wieght'\]"):
        case.problem.forward({"0.wieght": torch.zeros(5, 3)}, torch.zeros(1, 3))


def test_hooks_of_the_user_are_not_run():
    module, seen = make_module("mlp", "gaussian"), []
    for part in module.modules():
        part.register_forward_hook(lambda *_: seen.append("forward"))
        part.register_forward_pre_hook(lambda *_: seen.append("before"))
        part.register_forward_hook(lambda *_, **__: seen.append("named"), with_kwargs=True)
        part.register_full_backward_hook(lambda *_: seen.append("backward"))
        part.register_full_backward_pre_hook(lambda *_: seen.append("before backward"))
    problem, data = Problem.from_module(module, Gaussian()), make_data("mlp", "gaussian")
    losses(problem, data)
    total_gradient(problem, data)
    problem.train_forward(problem.params, data.fetch(torch.tensor([0])).inputs)
    assert seen == []
    module(torch.zeros(1, 3, dtype=torch.float64))
    assert "forward" in seen


def test_tied_weights_are_one_parameter_and_stay_tied(generator: Generator):
    problem, data = make_case("tied", "gaussian").problem, make_data("tied", "gaussian")
    assert "encoder.weight" in problem.params
    assert "decoder.weight" not in problem.params
    weight = torch.randn(3, 3, dtype=torch.float64, generator=generator)
    twin = make_module("tied", "gaussian")
    twin.encoder.weight = twin.decoder.weight = nn.Parameter(weight)
    found = outputs(problem, data, {"encoder.weight": weight})
    _, inputs, _ = data.fetch(torch.arange(7))
    assert_close(found, twin(inputs).detach(), **EXACT)


@pytest.mark.parametrize(
    "wrap",
    [parametrizations.weight_norm, parametrizations.spectral_norm],
    ids=["weight_norm", "spectral_norm"],
)
def test_parametrized_weights_are_differentiated_through(wrap, generator: Generator):
    module = nn.Sequential(wrap(nn.Linear(3, 2)), nn.Tanh(), nn.Linear(2, 2)).double()
    data = make_data("linear", "gaussian")
    require_differentiates(module, data)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "wrap",
    [
        torch.nn.utils.weight_norm,
        torch.nn.utils.spectral_norm,
        lambda layer: prune.l1_unstructured(layer, "weight", 2),
    ],
    ids=["weight_norm", "spectral_norm", "prune"],
)
def test_hooks_of_torch_that_compute_weights_are_part_of_the_network(wrap):
    module = nn.Sequential(wrap(nn.Linear(3, 2)), nn.Tanh(), nn.Linear(2, 2)).double()
    module(torch.ones(2, 3, dtype=torch.float64))
    require_differentiates(module, make_data("linear", "gaussian"))


def require_differentiates(module: nn.Module, data: Batches) -> None:
    """Compare with autograd on the module itself, in every parameter."""
    before = state_of(module)
    problem = Problem.from_module(module, Gaussian())
    rows = torch.cat([part for _, part in gradients(problem, data)])
    require_same(before, state_of(module))

    module.eval()
    for row, (inputs, target) in zip(rows, truth.samples(data), strict=True):
        loss = truth.negative_log_likelihood(Gaussian(), module(inputs), target).sum()
        expected = torch.autograd.grad(loss, tuple(module.parameters()))
        assert_close(row, truth.flat(expected), **EXACT)
    assert rows.any(0).sum() >= rows.shape[1] - 2  # two weights are pruned


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.weight = nn.Parameter(torch.ones(2, 3))

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return (x * z) @ self.weight.T


def test_a_network_may_take_several_inputs(generator: Generator):
    x, z = (torch.randn(5, 3, generator=generator) for _ in range(2))
    y = torch.zeros(5, 2)
    problem = Problem.from_module(TwoInputs(), Gaussian())
    for data in (Batches((x, z, y)), Batches(list(zip(x, z, y, strict=True)), batch_size=2)):
        assert_close(outputs(problem, data), TwoInputs()(x, z).detach())
        assert_close(torch.cat([g for _, g in gradients(problem, data)]).shape, (5, 6))


def test_a_network_may_return_an_object_with_logits():
    class Returned:
        def __init__(self, logits: Tensor) -> None:
            self.logits = logits

    class Model(nn.Linear):
        def forward(self, x: Tensor) -> Returned:
            return Returned(nn.Linear.forward(self, x))

    problem = Problem.from_module(Model(3, 2), Categorical())
    assert problem.forward(problem.params, torch.zeros(4, 3)).shape == (4, 2)


def test_a_network_that_returns_something_else_is_refused():
    class Model(nn.Linear):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    problem = Problem.from_module(Model(3, 2), Categorical())
    with pytest.raises(TypeError, match="returned a tuple, expected a tensor of outputs"):
        problem.forward(problem.params, torch.zeros(4, 3))


def test_a_lazy_module_is_refused_until_it_has_run():
    module = nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.Linear(4, 2))
    with pytest.raises(
        ValueError, match=r"\['0\.weight', .* have no shape yet.*run it on one batch"
    ):
        Problem.from_module(module, Categorical())
    module(torch.zeros(2, 3))
    assert Problem.from_module(module, Categorical()).num_params == 16 + 8 + 10


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_parameters_that_are_not_finite_are_refused(value: float):
    module = make_module("mlp", "gaussian")
    with torch.no_grad():
        module[3].bias[0] = value
    with pytest.raises(ValueError, match=r"parameters \['3\.bias'\] hold NaN or infinite"):
        Problem.from_module(module, Gaussian())


def test_a_module_without_parameters_is_refused():
    with pytest.raises(ValueError, match="Tanh has no parameters"):
        Problem.from_module(nn.Tanh(), Gaussian())


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_reduced_loss_module_is_refused(reduction: str):
    with pytest.raises(
        ValueError, match=rf"reduction='{reduction}'.*CrossEntropyLoss\(reduction='none'"
    ):
        Problem.from_module(nn.Linear(3, 2), nn.CrossEntropyLoss(reduction=reduction))


def test_an_unreduced_loss_module_and_a_function_are_taken():
    x, y = torch.zeros(4, 3), torch.tensor([0, 1, 1, 0])
    module = nn.Linear(3, 2)
    expected = losses(Problem.from_module(module, Categorical()), Batches((x, y)))
    for loss in (
        nn.CrossEntropyLoss(reduction="none"),
        lambda f, y: functional.cross_entropy(f, y, reduction="none"),
    ):
        problem = Problem.from_module(module, loss)
        assert isinstance(problem.likelihood, PerSample)
        assert_close(losses(problem, Batches((x, y))), expected)


def test_a_function_that_reduces_is_refused_at_its_first_batch():
    problem = Problem.from_module(nn.Linear(3, 2), functional.cross_entropy)
    data = Batches((torch.zeros(4, 3), torch.tensor([0, 1, 1, 0])))
    with pytest.raises(ValueError, match="one number for each sample"):
        losses(problem, data)
    with pytest.raises(ValueError, match="one number for each sample"):
        next(gradients(problem, data))


def test_the_class_of_a_likelihood_is_not_a_likelihood():
    with pytest.raises(
        TypeError, match=r"the class Categorical, expected an object: pass Categorical\(\)"
    ):
        Problem.from_module(nn.Linear(3, 2), Categorical)


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
