"""Agreement of EK-FAC influence with kronfluence, where both are exact.

With one output, Gaussian noise of standard deviation 1 and targets one away from the outputs, the
outer product of each sample's own gradient is its generalized Gauss-Newton matrix: kronfluence's
empirical Fisher matrix and ours are the same, and so must be the scores.
"""

import copy
import logging

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.data import TensorDataset

from afterfit.curvature import relative
from afterfit.influence import EKFACInfluence
from afterfit.problem import Batches, Gaussian, Problem

pytestmark = [pytest.mark.against, pytest.mark.filterwarnings("ignore")]


class Sequence(nn.Module):
    """A layer with a bias at every position, one without, and a mean over positions."""

    def __init__(self):
        nn.Module.__init__(self)
        self.first = nn.Linear(3, 4)
        self.second = nn.Linear(4, 1, bias=False)

    def forward(self, x):
        return self.second(self.first(x).tanh()).mean(1)


def mlp() -> tuple[nn.Module, tuple[int, ...]]:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)), (4,)


def conv() -> tuple[nn.Module, tuple[int, ...]]:
    layers = nn.Conv2d(2, 3, 3, padding=1, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(27, 1)
    return nn.Sequential(*layers), (2, 5, 5)


MODULES = {"mlp": mlp, "conv": conv, "sequence": lambda: (Sequence(), (6, 3))}


def kronfluence_scores(module, data, query, damping, folder) -> tuple[Tensor, Tensor]:
    """Pairwise and self scores with the empirical Fisher matrix, all in float64."""
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task
    from kronfluence.utils.dataset import DataLoaderKwargs

    class Regression(Task):
        def compute_train_loss(self, batch, model, sample=False):
            inputs, targets = batch
            return 0.5 * (model(inputs) - targets).square().sum()

        def compute_measurement(self, batch, model):
            return self.compute_train_loss(batch, model)

    logging.disable(logging.WARNING)
    task = Regression()
    model = prepare_model(copy.deepcopy(module).eval(), task)
    settings = {"cpu": True, "disable_tqdm": True, "disable_model_save": True}
    analyzer = Analyzer("test", model, task, output_dir=str(folder), **settings)
    analyzer.set_dataloader_kwargs(DataLoaderKwargs(num_workers=0))
    double = torch.float64
    factors = FactorArguments(
        strategy="ekfac",
        use_empirical_fisher=True,
        activation_covariance_dtype=double,
        gradient_covariance_dtype=double,
        eigendecomposition_dtype=double,
        per_sample_gradient_dtype=double,
        lambda_dtype=double,
    )
    analyzer.fit_all_factors("factors", data, per_device_batch_size=4, factor_args=factors)
    scores = ScoreArguments(
        damping_factor=damping,
        per_sample_gradient_dtype=double,
        precondition_dtype=double,
        score_dtype=double,
    )
    analyzer.compute_pairwise_scores(
        "pairs", "factors", query, data, 4, score_args=scores, per_device_train_batch_size=4
    )
    analyzer.compute_self_scores(
        "self", "factors", data, score_args=scores, per_device_train_batch_size=4
    )
    logging.disable(logging.NOTSET)
    pairs = analyzer.load_pairwise_scores("pairs")["all_modules"]
    return pairs, analyzer.load_self_scores("self")["all_modules"].flatten()


@pytest.mark.parametrize("damping", [None, 0.01])
@pytest.mark.parametrize("name", MODULES)
def test_ekfac_influence_is_that_of_kronfluence(name, damping, tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        module, shape = MODULES[name]()
        module = module.double()
        x = torch.randn(9, *shape, dtype=torch.float64)
    signs = torch.where(torch.arange(9) % 3 == 0, -1.0, 1.0).double()[:, None]
    with torch.no_grad():
        y = module(x) + signs
    problem = Problem.from_module(module, Gaussian())
    train = Batches((x, y), batch_size=4)
    query = train.subset(torch.arange(3))

    expected, own = kronfluence_scores(
        module, TensorDataset(x, y), TensorDataset(x[:3], y[:3]), damping, tmp_path
    )

    found = EKFACInfluence(relative(0.1) if damping is None else damping).fit(problem, train)
    assert_close(found.scores(query), expected.double(), rtol=1e-5, atol=1e-8)
    assert_close(found.self_scores(), own.double(), rtol=1e-5, atol=1e-8)
