import joblib
import pytest
import torch
from torch import Tensor, nn

from afterfit.parallel import map_independent
from afterfit.problem import Batches
from afterfit.workflows.retraining import retrain_on


def truth() -> Tensor:
    """Losses after trainings that draw from the global generator, as the user's may."""

    def train(data: Batches, seed: int) -> nn.Module:  # inside, so that it is sent by value
        net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        _, inputs, targets = data.fetch(torch.arange(data.num_samples))
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(inputs), targets).backward()
            optimizer.step()
        return net

    generator = torch.Generator().manual_seed(0)
    data = Batches((torch.randn(20, 4, generator=generator), torch.arange(20) % 3))
    kept = torch.rand(3, 20, generator=generator) < 0.6
    return retrain_on(train, data, data, kept, seeds=[0, 1]).losses


def test_results_come_in_the_order_of_the_tasks():
    with joblib.parallel_config(backend="threading", n_jobs=2):
        assert map_independent(lambda task: -task, range(20)) == [-task for task in range(20)]


def test_threads_are_put_back_also_after_a_failure():
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError):
        map_independent(lambda task: 1 // task, [0], threads=before + 1)
    assert torch.get_num_threads() == before


def test_no_threads_are_refused():
    with pytest.raises(ValueError, match="threads is 0, expected at least 1"):
        map_independent(lambda task: task, [0], threads=0)


def test_one_and_two_workers_give_the_same_bits():
    alone = truth()
    state = torch.get_rng_state()
    assert torch.equal(truth(), alone)
    assert torch.equal(torch.get_rng_state(), state)  # nothing is left behind in this process
    with joblib.parallel_config(backend="loky", n_jobs=2):
        assert torch.equal(truth(), alone)


@pytest.mark.against
def test_a_dask_cluster_of_two_workers_gives_the_same_bits():
    distributed = pytest.importorskip("distributed")
    alone = truth()
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None
        ) as local,
        distributed.Client(local),
        joblib.parallel_config(backend="dask", wait_for_workers_timeout=60),
    ):
        assert torch.equal(truth(), alone)
