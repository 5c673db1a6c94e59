import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Generator, nn

from afterfit.evaluate import leave_out_logistic, leave_out_ridge
from afterfit.influence.classic import InfluenceFunction
from afterfit.problem import Batches, Categorical, Problem


def data(num: int = 80) -> tuple[torch.Tensor, torch.Tensor]:
    generator = Generator().manual_seed(0)
    x = torch.randn(num, 3, generator=generator, dtype=torch.float64)
    return x, (x.sum(1) + torch.randn(num, generator=generator) > 0).long()


def test_ridge_without_a_sample_is_the_closed_form():
    x, _ = data(20)
    y = x[:, :1] + 0.3 * x[:, 1:2] ** 2
    rises = leave_out_ridge((x, y), (x, y), [torch.tensor([k]) for k in range(20)], precision=0.5)
    inverse = torch.linalg.inv(x.T @ x + 0.5 * torch.eye(3))
    residual, hat = (y - x @ inverse @ x.T @ y)[:, 0], x @ inverse @ x.T
    for k in range(20):  # Sherman and Morrison
        moved = residual + hat[:, k] * residual[k] / (1 - hat[k, k])
        assert torch.allclose(rises[:, k], (moved**2 - residual**2) / 2, atol=1e-10)


def test_logistic_without_a_group_is_what_scikit_learn_finds():
    x, y = data()
    group, precision = torch.arange(10), 2.0
    found = leave_out_logistic((x, y), (x, y), [group], precision)[:, 0]

    def losses(kept: slice) -> np.ndarray:
        # two logits with a penalty on both are one logit with half the precision
        model = LogisticRegression(C=2 / precision, fit_intercept=False, tol=1e-10, max_iter=1000)
        model.fit(x[kept].numpy(), y[kept].numpy())
        return -model.predict_log_proba(x.numpy())[np.arange(len(y)), y.numpy()]

    expected = losses(slice(10, None)) - losses(slice(None))
    assert np.abs(found.numpy() - expected).max() < 1e-6


def test_influence_foretells_leaving_one_out_of_a_logistic_regression():
    x, y = data(200)
    num, precision = len(x), 10.0
    net = nn.Linear(3, 2, bias=False).double()
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=200, line_search_fn="strong_wolfe",
                                  tolerance_grad=1e-12, tolerance_change=1e-14)  # fmt: skip

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y, reduction="sum")
        loss = loss + precision / 2 * net.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    train = Batches((x, y))
    problem = Problem.from_module(net, Categorical())
    scores = InfluenceFunction(precision / num).fit(problem, train).scores(train) / num
    rises = leave_out_logistic((x, y), (x, y), [torch.tensor([k]) for k in range(num)], precision)
    both = torch.stack([scores.flatten(), rises.flatten()])
    assert float(torch.corrcoef(both)[0, 1]) > 0.999


def test_a_fit_without_a_unique_answer_is_refused():
    x, y = data()
    with pytest.raises(ValueError, match=r"precision is 0\.0, expected above 0"):
        leave_out_logistic((x, y), (x, y), [torch.tensor([0])], 0.0)
