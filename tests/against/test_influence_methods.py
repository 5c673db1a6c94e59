"""The linear methods beside captum, dattri and TRAK, where their definitions agree."""

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from afterfit.influence import TRAK, DataInf, NearestNeighborShapley, TracIn
from afterfit.problem import Batches, Categorical, Problem

pytestmark = [pytest.mark.against, pytest.mark.filterwarnings("ignore")]


def draws(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=Generator().manual_seed(seed), dtype=torch.float64)


def network(seed: int) -> nn.Module:
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    net.load_state_dict({n: draws(*p.shape, seed=seed) for n, p in net.named_parameters()})
    return net.eval()


X, Y = draws(40, 4, seed=1), torch.arange(40) % 3
TRAIN, QUERY = Batches((X, Y)), Batches((X[:5] + 0.1, Y[:5]))


def test_tracin_is_captums(tmp_path):
    captum = pytest.importorskip("captum.influence")
    rates, paths = [0.5, 2.0], []
    for seed in (0, 1):
        paths.append(str(tmp_path / f"{seed}.pt"))
        torch.save(network(seed).state_dict(), paths[-1])

    def load(model: nn.Module, path: str) -> float:
        model.load_state_dict(torch.load(path, weights_only=True))
        return rates[paths.index(path)]

    theirs = captum.TracInCP(
        network(0),
        TensorDataset(X, Y),
        paths,
        load,
        batch_size=16,
        loss_fn=nn.CrossEntropyLoss(reduction="sum"),
        sample_wise_grads_per_batch=True,
    )
    states = [network(seed).state_dict() for seed in (0, 1)]
    ours = TracIn(states, rates).fit(Problem.from_module(network(0), Categorical()), TRAIN)

    assert_close(ours.scores(QUERY), theirs.influence((X[:5] + 0.1, Y[:5])))
    assert_close(ours.self_scores(), theirs.self_influence())


def test_datainf_is_dattris_where_a_layer_is_one_tensor():
    dattri = pytest.importorskip("dattri.algorithm")
    task_of = pytest.importorskip("dattri.task").AttributionTask
    net = nn.Linear(4, 3, bias=False)
    net.load_state_dict({"weight": draws(3, 4, seed=0).float()})

    def loss(params, data):
        x, y = data
        return functional.cross_entropy(torch.func.functional_call(net, params, (x,)), y)

    problem = Problem.from_module(net, Categorical())
    ours = DataInf(0.1).fit(problem, Batches((X.float(), Y)))
    (layer,) = ours.layers.values()
    task = task_of(loss_func=loss, model=net, checkpoints=net.state_dict())
    theirs = dattri.IFAttributorDataInf(task=task, device="cpu", regularization=layer.damping)
    loaders = [
        DataLoader(TensorDataset(x, y), 40)
        for x, y in ((X.float(), Y), (X[:5].float() + 0.1, Y[:5]))
    ]
    theirs.cache(loaders[0])

    found = theirs.attribute(*loaders).T
    assert_close(ours.scores(Batches(loaders[1].dataset.tensors)), found, rtol=1e-3, atol=1e-4)


def test_neighbor_values_are_dattris():
    dattri = pytest.importorskip("dattri.algorithm")
    net = nn.Linear(4, 3).double()
    problem = Problem.from_module(net, Categorical())
    with torch.no_grad():
        features = [(net(x).float(), y) for x, y in ((X, Y), (X[:5] + 0.1, Y[:5]))]
    theirs = dattri.KNNShapleyAttributor(k_neighbors=5)
    loaders = [DataLoader(TensorDataset(*pair), 40) for pair in features]

    found = theirs.attribute(*loaders)
    ours = NearestNeighborShapley(5).fit(problem, TRAIN).scores(QUERY)
    assert_close(ours.float(), torch.as_tensor(found).float(), rtol=1e-4, atol=1e-5)


def test_trak_is_traks_with_the_same_projections(tmp_path):
    trak = pytest.importorskip("trak")
    net, d = network(0).float(), 8
    problem = Problem.from_module(net, Categorical())
    shape = d, problem.num_params
    directions = torch.randn(shape, generator=Generator().manual_seed(0))

    class Fixed:
        proj_dim, proj_type = d, "normal"

        def project(self, grads, model_id: int) -> Tensor:
            rows = (
                grads
                if isinstance(grads, Tensor)
                else torch.cat([g.flatten(1) for g in grads.values()], 1)
            )
            return rows.float() @ directions.T / d**0.5

        def free_memory(self) -> None: ...

    traker = trak.TRAKer(
        net,
        "image_classification",
        train_set_size=40,
        save_dir=str(tmp_path),
        device="cpu",
        projector=Fixed(),
        proj_dim=d,
        use_half_precision=False,
        logging_level=50,
    )
    x, query = X.float(), X[:5].float() + 0.1
    traker.load_checkpoint(net.state_dict(), model_id=0)
    traker.featurize((x, Y), num_samples=40)
    traker.finalize_features()
    traker.start_scoring_checkpoint("one", net.state_dict(), model_id=0, num_targets=5)
    traker.score((query, Y[:5]), num_samples=5)
    found = torch.as_tensor(traker.finalize_scores("one")).T

    ours = TRAK(d).fit(problem, Batches((x, Y))).scores(Batches((query, Y[:5])))
    both = torch.stack([ours.flatten(), found.float().flatten()])
    assert torch.corrcoef(both)[0, 1] > 0.9999  # theirs have another scale of projections
