import copy

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
    PerSample,
    Problem,
    gradients,
    losses,
    outputs,
)
from afterfit.problem.persample import total_gradient
from tests import truth
from tests.cases import make_case, make_data, make_module

EXACT = {"rtol": 1e-12, "atol": 1e-12}


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
    before = copy.deepcopy(module.state_dict())
    problem = Problem.from_module(module, Gaussian())
    rows = torch.cat([part for _, part in gradients(problem, data)])
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())

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
