"""Agreement with curvlinops in float64, on networks that it covers."""

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from afterfit.curvature import diagonal, ekfac, expand, ggn, hessian, kfac, reduce
from afterfit.linalg import spectrum
from afterfit.problem import Batches, Categorical, Problem, connectivity

pytestmark = [
    pytest.mark.against,
    pytest.mark.filterwarnings("ignore"),
]
SHARING = {"expand": expand, "reduce": reduce}


def mlp() -> tuple[nn.Module, tuple[int, ...]]:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), (4,)


def conv() -> tuple[nn.Module, tuple[int, ...]]:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(27, 3)
    ), (2, 5, 5)


MODULES = {"mlp": mlp, "conv": conv}
EVERY = pytest.mark.parametrize("name", MODULES)


def setting(name: str) -> tuple[nn.Module, list[tuple[Tensor, Tensor]], Problem, Batches]:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        module, shape = MODULES[name]()
        inputs = torch.randn(8, *shape, dtype=torch.float64)
    labels = torch.arange(8) % 3
    module = module.double()
    data = list(zip(inputs.split(3), labels.split(3), strict=True))
    return module, data, Problem.from_module(module, Categorical()), Batches((inputs, labels), 3)


def theirs(name: str, module: nn.Module, data, **settings) -> Tensor:
    curvlinops = pytest.importorskip("curvlinops")
    make = getattr(curvlinops, name)
    loss = nn.CrossEntropyLoss(reduction="sum")
    operator = make(module, loss, list(module.parameters()), data, **settings)
    size = sum(p.numel() for p in module.parameters())
    return operator @ torch.eye(size, dtype=torch.float64)


@EVERY
def test_the_ggn_and_the_hessian_agree(name: str):
    module, pairs, problem, data = setting(name)
    for ours, other in ((ggn, "GGNLinearOperator"), (hessian, "HessianLinearOperator")):
        expected = theirs(other, module, pairs)
        assert_close(ours(problem, data).to_dense(), expected, rtol=1e-9, atol=1e-11)


@EVERY
def test_the_diagonal_agrees(name: str):
    module, pairs, problem, data = setting(name)
    expected = theirs("GGNLinearOperator", module, pairs).diagonal()
    assert_close(diagonal(problem, data).entries, expected, rtol=1e-9, atol=1e-11)


@EVERY
@pytest.mark.parametrize("sharing", SHARING)
@pytest.mark.parametrize("kind", ["KFACLinearOperator", "EKFACLinearOperator"])
def test_kronecker_factored_curvature_agrees(name: str, sharing: str, kind: str):
    if (name, sharing, kind) == ("conv", "reduce", "EKFACLinearOperator"):
        pytest.skip("theirs corrects by reduced gradients, ours by those that there are")
    module, pairs, problem, data = setting(name)
    make = kfac if kind == "KFACLinearOperator" else ekfac
    expected = theirs(
        kind,
        module,
        pairs,
        fisher_type="type-2",
        kfac_approx=sharing,
        separate_weight_and_bias=False,
    )
    found = make(problem, data, SHARING[sharing]).to_dense()
    assert_close(found, expected, rtol=1e-8, atol=1e-10)


@EVERY
def test_relative_curvature_is_theirs_between_two_diagonals(name: str):
    module, pairs, problem, data = setting(name)
    scale = torch.cat([p.detach().flatten() for p in module.parameters()])
    expected = scale[:, None] * theirs("GGNLinearOperator", module, pairs) * scale
    found = ggn(connectivity(problem), data).to_dense()
    assert_close(found, expected, rtol=1e-9, atol=1e-12)


@EVERY
def test_the_largest_eigenvalues_agree_with_scipy_on_their_operator(name: str):
    module, pairs, problem, data = setting(name)
    expected = torch.linalg.eigvalsh(theirs("GGNLinearOperator", module, pairs)).flip(0)[:4]
    found = spectrum(ggn(problem, data), 4, torch.Generator().manual_seed(0), tolerance=1e-8)
    assert_close(found.values, expected, rtol=1e-8, atol=1e-10)
