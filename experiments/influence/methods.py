"""The methods whose scores are held against retraining: ours, and those of other packages.

All give scores (Q, N), positive where removal raises the query's loss. A tuned method has a number that is
chosen where nothing is reported.
"""

import copy
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import torch
from hybrid import Prepared
from settings import Setting, trained
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from afterfit import GEX, Batches, Categorical, Problem
from afterfit.curvature import Curvature, Inverse, diagonal, ekfac, kfac
from afterfit.influence import (
    TRAK,
    ArnoldiInfluence,
    DataInf,
    EKFACInfluence,
    GradientCosine,
    GradientDot,
    HybridInfluence,
    InfluenceFunction,
    InfluenceMethod,
    RandomProjection,
    TracIn,
)
from afterfit.influence.classic import influence_by

DAMPINGS = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
WIDE = (1e-6, 1e-5, 1e-4, 3e-4, *DAMPINGS)  # where one more damping costs little
SHARES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # of the mean squared gradient of a layer
RATES = (1e-3, 3e-3, 1e-2, 3e-2)


@dataclass(frozen=True, eq=False)
class Case:
    """A setting with its network, trained on all samples, and checkpoints."""

    setting: Setting
    network: nn.Module
    checkpoints: Sequence[dict[str, Tensor]]

    @property
    def problem(self) -> Problem:
        return Problem.from_module(self.network, Categorical())

    @property
    def train(self) -> Batches:
        return Batches((self.setting.inputs, self.setting.targets), batch_size=250)

    @property
    def query(self) -> Batches:
        return Batches((self.setting.query_inputs, self.setting.query_targets), batch_size=250)


def case_of(setting: Setting) -> Case:
    """Train on everything; checkpoints are trainings of a third and two thirds of the epochs, and the last."""
    everything = torch.arange(len(setting.targets))
    epochs = [round(share * setting.epochs) for share in (1 / 3, 2 / 3, 1)]
    networks = [trained(replace(setting, epochs=num), everything, 0) for num in epochs]
    return Case(setting, networks[-1], [network.state_dict() for network in networks])


def retrain(setting: Setting, data: Batches, seed: int) -> nn.Module:
    """Train on the samples of a subset, as the whole was trained."""
    _, inputs, targets = data.fetch(torch.arange(data.num_samples))
    part = replace(setting, inputs=inputs, targets=targets)
    return trained(part, torch.arange(data.num_samples), seed)


# Ours ---------------------------------------------------------------------------------------------

Method = Callable[[Case], Tensor]


def ours(make: Callable[[Case], InfluenceMethod]) -> Method:
    return lambda case: make(case).fit(case.problem, case.train).scores(case.query)


@lru_cache
def gauss_newton(damping: float, case: Case) -> Inverse:
    """Inverse of the damped Gauss-Newton matrix; one serves several methods while dampings are tried."""
    return InfluenceFunction(damping).prepare(case.problem, case.train)


def damped(damping: float, case: Case) -> Tensor:
    inverse = gauss_newton(damping, case)
    return influence_by(inverse, case.problem, case.train).scores(case.query)


def relatif(damping: float, case: Case) -> Tensor:
    """Divided by the root of self-influence (Barshan, Brunet and Dziugaite 2020, l-RelatIF)."""
    influence = influence_by(gauss_newton(damping, case), case.problem, case.train)
    return influence.scores(case.query) / influence.self_scores().sqrt()


def hybrid(damping: float, case: Case) -> Tensor:
    method = HybridInfluence(Prepared(gauss_newton(damping, case)))
    return ours(lambda _: method)(case)


def layered(curvature: Curvature, damping: float, case: Case) -> Tensor:
    method = EKFACInfluence(damping, partial(curvature, others=diagonal))
    return ours(lambda _: method)(case)


def by_data(share: float, case: Case) -> Tensor:
    return ours(lambda _: DataInf(share))(case)


def arnoldi(num_pairs: int, damping: float, case: Case) -> Tensor:
    return ours(lambda _: ArnoldiInfluence(num_pairs=num_pairs, damping=damping))(case)


def geometric(rate: float, case: Case) -> Tensor:
    return ours(lambda _: GEX(members=32, learning_rate=rate))(case)


# Of other packages --------------------------------------------------------------------------------


def kronfluence_ekfac(damping: float, case: Case) -> Tensor:
    """EK-FAC of its authors' package; its own default is a damping of 1e-8."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "gex"))
    from kronfluence.arguments import ScoreArguments
    from peers import Kronfluence

    setting = case.setting
    with tempfile.TemporaryDirectory() as folder:
        peer = Kronfluence(case.network, setting.inputs, setting.targets, Path(folder)).fit()
        peer.analyzer.compute_pairwise_scores(
            "pairs", "ekfac", TensorDataset(setting.query_inputs, setting.query_targets), peer.data,
            per_device_query_batch_size=512, per_device_train_batch_size=512,
            score_args=ScoreArguments(damping_factor=damping), overwrite_output_dir=True,
        )  # fmt: skip
        return peer.analyzer.load_pairwise_scores("pairs")["all_modules"].float()


def captum_tracin(case: Case) -> Tensor:
    from captum.influence import TracInCP

    def load(module: nn.Module, number: str) -> float:
        module.load_state_dict(case.checkpoints[int(number)])
        return 1.0

    setting = case.setting
    peer = TracInCP(
        copy.deepcopy(case.network), TensorDataset(setting.inputs, setting.targets),
        [str(k) for k in range(len(case.checkpoints))], load,
        loss_fn=nn.CrossEntropyLoss(reduction="sum"), batch_size=250, sample_wise_grads_per_batch=True,
    )  # fmt: skip
    return peer.influence((setting.query_inputs, setting.query_targets)).detach()


def captum_arnoldi(case: Case) -> Tensor:
    from captum.influence._core.arnoldi_influence_function import ArnoldiInfluenceFunction

    setting = case.setting
    peer = ArnoldiInfluenceFunction(
        copy.deepcopy(case.network), TensorDataset(setting.inputs, setting.targets), "",
        checkpoints_load_func=lambda *_: 1.0, loss_fn=nn.CrossEntropyLoss(reduction="sum"), batch_size=250,
        sample_wise_grads_per_batch=True, arnoldi_dim=50, projection_dim=30, seed=0,
    )  # fmt: skip
    return peer.influence((setting.query_inputs, setting.query_targets)).detach()


def traker(case: Case) -> Tensor:
    """TRAK by its authors' package at the last checkpoint, 512 projections."""
    from trak import TRAKer

    setting = case.setting
    data, query = (setting.inputs, setting.targets), (setting.query_inputs, setting.query_targets)
    with tempfile.TemporaryDirectory() as folder:
        peer = TRAKer(
            model=copy.deepcopy(case.network).eval(), task="image_classification", train_set_size=len(data[1]),
            save_dir=folder, device="cpu", proj_dim=512, use_half_precision=False, logging_level=50,
        )  # fmt: skip
        state = case.checkpoints[-1]
        peer.load_checkpoint(state, model_id=0)
        peer.featurize(batch=data, num_samples=len(data[1]))
        peer.finalize_features()
        peer.start_scoring_checkpoint("q", state, model_id=0, num_targets=len(query[1]))
        peer.score(batch=query, num_samples=len(query[1]))
        return torch.tensor(peer.finalize_scores("q")).T.float()


def dattri_cg(damping: float, case: Case) -> Tensor:
    from dattri.algorithm.influence_function import IFAttributorCG
    from dattri.task import AttributionTask

    setting = case.setting

    def loss(params: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        inputs, targets = batch
        return functional.cross_entropy(
            torch.func.functional_call(case.network, params, inputs), targets
        )

    task = AttributionTask(loss, case.network, case.network.state_dict())
    peer = IFAttributorCG(task=task, device="cpu", regularization=damping, max_iter=10)
    train = DataLoader(
        TensorDataset(setting.inputs, setting.targets), batch_size=len(setting.targets)
    )
    query = DataLoader(TensorDataset(setting.query_inputs, setting.query_targets), batch_size=300)
    peer.cache(train)
    return peer.attribute(train, query).T.detach()


METHODS: dict[str, Method] = {
    "gradient dot": ours(lambda _: GradientDot()),
    "gradient cosine": ours(lambda _: GradientCosine()),
    "TracIn, 3 checkpoints": ours(lambda case: TracIn(case.checkpoints)),
    "random projection, 512": ours(lambda _: RandomProjection(512)),
    "TRAK, last checkpoint": ours(lambda _: TRAK()),
    "TRAK, 3 checkpoints": ours(lambda case: TRAK(checkpoints=case.checkpoints)),
    "GEX, 8 members": ours(lambda _: GEX()),
    "GEX, 32 members": ours(lambda _: GEX(members=32)),
    "captum TracInCP, 3 checkpoints": captum_tracin,
    "captum Arnoldi, 30 pairs": captum_arnoldi,
    "traker TRAK, last checkpoint": traker,
}

PARENT = "influence function (GGN)"
Tuned = tuple[Callable[[float, Case], Tensor], Sequence[float]]
TUNED: dict[str, Tuned] = {
    PARENT: (damped, DAMPINGS),
    "hybrid influence (GGN), 8 pairs": (hybrid, DAMPINGS),
    "RelatIF (GGN)": (relatif, DAMPINGS),
    "EK-FAC": (partial(layered, ekfac), WIDE),
    "K-FAC": (partial(layered, kfac), WIDE),
    "DataInf": (by_data, SHARES),
    "Arnoldi, 20 pairs": (partial(arnoldi, 20), DAMPINGS),
    "Arnoldi, 30 pairs": (partial(arnoldi, 30), DAMPINGS),
    "GEX, 32 members, rate chosen": (geometric, RATES),
    "kronfluence EK-FAC": (kronfluence_ekfac, WIDE),
    "dattri CG, 10 steps": (dattri_cg, DAMPINGS),
}
