"""How well each method foretells retraining: linear datamodeling scores with intervals and ceiling.

Three settings (settings.py), 100 half-subsets × 3 seeds each. Dampings, and the learning rate of one GEX, are chosen on the first 40 subsets and 150
queries; the table is of the other 60 subsets and 150 queries. Times are CPU seconds of one thread after the training,
for all 300 queries.

    python experiments/influence/lds.py truth mlp --data DATA        # 300 retrainings, kept beside the results
    python experiments/influence/lds.py scores mlp --data DATA       # all methods; results/lds-mlp.csv
    python experiments/influence/lds.py table                        # the table of NOTES.md and docs/choose.md
"""

import argparse
import copy
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from settings import SETTINGS, Setting, trained
from torch import Generator, Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from afterfit import GEX, Batches, Categorical, Problem
from afterfit.evaluate import (
    Retrainings,
    drawn_subsets,
    linear_datamodeling_difference,
    linear_datamodeling_interval,
    linear_datamodeling_score,
    truth_ceiling,
)
from afterfit.influence.arnoldi import ArnoldiInfluence
from afterfit.influence.base import InfluenceMethod
from afterfit.influence.classic import InfluenceFunction
from afterfit.influence.projected import RandomProjection
from afterfit.influence.tracin import GradientDot, TracIn
from afterfit.workflows.retraining import load_retrainings, retrain_on, save_retrainings

RESULTS = Path(__file__).parent / "results"
SUBSETS, SEEDS, RESAMPLES = 100, (1000, 1001, 1002), 200
VALIDATION = slice(0, 40), slice(0, 150)  # subsets, queries
TEST = slice(40, None), slice(150, None)
DAMPINGS = (1e-4, 1e-3, 1e-2, 1e-1)
RATES = (1e-3, 3e-3, 1e-2, 3e-2)


@dataclass(frozen=True)
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


# Methods: scores (Q, N), positive where removal raises the query's loss ---------------------------

Method = Callable[[Case], Tensor]


def ours(make: Callable[[Case], InfluenceMethod]) -> Method:
    return lambda case: make(case).fit(case.problem, case.train).scores(case.query)


def gradient_cosine(case: Case) -> Tensor:
    influence = GradientDot().fit(case.problem, case.train)
    asked = GradientDot().fit(case.problem, case.query).self_scores()
    return influence.scores(case.query) / (influence.self_scores() * asked[:, None]).sqrt()


def damped(damping: float, case: Case) -> Tensor:
    return InfluenceFunction(damping).fit(case.problem, case.train).scores(case.query)


def relative(damping: float, case: Case) -> Tensor:
    """Divided by the root of self-influence (Barshan, Brunet and Dziugaite 2020, l-RelatIF)."""
    influence = InfluenceFunction(damping).fit(case.problem, case.train)
    return influence.scores(case.query) / influence.self_scores().sqrt()


def geometric(rate: float, case: Case) -> Tensor:
    return GEX(members=32, learning_rate=rate).fit(case.problem, case.train).scores(case.query)


def kronfluence_ekfac(case: Case) -> Tensor:
    sys.path.insert(0, str(Path(__file__).parents[1] / "gex"))
    from peers import Kronfluence

    setting = case.setting
    with tempfile.TemporaryDirectory() as folder:
        peer = Kronfluence(case.network, setting.inputs, setting.targets, Path(folder)).fit()
        return peer.scores(setting.query_inputs, setting.query_targets)


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
    "gradient cosine": gradient_cosine,
    "TracIn, 3 checkpoints": ours(lambda case: TracIn(case.checkpoints)),
    "random projection, 512": ours(lambda _: RandomProjection(512)),
    "Arnoldi, damping 0.01": ours(lambda _: ArnoldiInfluence(damping=1e-2)),
    "GEX, 8 members": ours(lambda _: GEX()),
    "GEX, 32 members": ours(lambda _: GEX(members=32)),
    "captum TracInCP, 3 checkpoints": captum_tracin,
    "captum Arnoldi": captum_arnoldi,
    "kronfluence EK-FAC": kronfluence_ekfac,
    "traker TRAK, 1 checkpoint": traker,
}

PARENT = "influence function (GGN)"
Tuned = tuple[Callable[[float, Case], Tensor], Sequence[float]]
TUNED: dict[str, Tuned] = {
    PARENT: (damped, DAMPINGS),
    "relative influence (GGN)": (relative, DAMPINGS),
    "GEX, 32 members, rate chosen": (geometric, RATES),
    "dattri CG, 10 steps": (dattri_cg, DAMPINGS),
}


# The three steps ----------------------------------------------------------------------------------


def part_of(truth: Retrainings, part: tuple[slice, slice]) -> Retrainings:
    rows, queries = part
    return Retrainings(
        truth.kept[rows], truth.losses[rows, :, queries], truth.correct[rows, :, queries]
    )


def make_truth(name: str, data: Path) -> None:
    start = time.process_time()
    setting = SETTINGS[name](data)
    case = Case(setting, setting.network(), ())
    kept = drawn_subsets(len(setting.targets), SUBSETS, Generator().manual_seed(1))
    truth = retrain_on(partial(retrain, setting), case.train, case.query, kept, SEEDS)
    save_retrainings(RESULTS / f"lds-{name}.safetensors", truth)
    print(f"{name}: {SUBSETS} × {len(SEEDS)} trainings, {time.process_time() - start:.0f} CPU s")


def best(tuned: Tuned, truth: Retrainings) -> Method:
    """With the setting that foretells the validation part best; only its own fit is timed."""
    method, grid = tuned

    def scores(case: Case) -> Tensor:
        def value(setting: float) -> float:
            asked = method(setting, case)[VALIDATION[1]]
            return float(linear_datamodeling_score(asked, part_of(truth, VALIDATION)).nanmean())

        chosen = max(grid, key=value)
        print(f"  chosen: {chosen:g}")
        return timed(partial(method, chosen), case)

    return scores


SECONDS = [0.0]


def timed(method: Method, case: Case) -> Tensor:
    start = time.process_time()
    found = method(case)
    SECONDS[0] = time.process_time() - start
    return found


def make_scores(name: str, data: Path, skip: str) -> None:
    truth = load_retrainings(RESULTS / f"lds-{name}.safetensors")
    case, test = case_of(SETTINGS[name](data)), part_of(truth, TEST)
    found: dict[str, tuple[Tensor, float]] = {}
    timed(METHODS["gradient dot"], case)  # imports and first allocations belong to nobody
    all_methods = {title: best(tuned, truth) for title, tuned in TUNED.items()}
    all_methods |= {title: partial(timed, method) for title, method in METHODS.items()}
    for title, method in all_methods.items():
        if skip in title:
            continue
        try:
            found[title] = method(case)[TEST[1]], SECONDS[0]
            print(
                title,
                round(float(linear_datamodeling_score(found[title][0], test).nanmean()), 3),
                flush=True,
            )
        except Exception as error:  # a peer that does not run here is told, and left out
            print(
                f"{name}: {title} does not run: {type(error).__name__}: {str(error)[:200]}",
                flush=True,
            )
    ceiling = truth_ceiling(test)
    rows: list[dict[str, str | float]] = [
        {"setting": name, "method": "ceiling", "lds": ceiling.highest}
    ]
    for title, (scores, seconds) in found.items():
        lds = linear_datamodeling_interval(scores, test, RESAMPLES, Generator().manual_seed(0))
        more = linear_datamodeling_difference(
            scores, found[PARENT][0], test, RESAMPLES, Generator().manual_seed(0)
        )
        rows.append(
            {"setting": name, "method": title, "lds": lds.value, "low": lds.low, "high": lds.high,
             "minus_ggn": more.value, "minus_low": more.low, "minus_high": more.high, "cpu_s": seconds}
        )  # fmt: skip
        print(f"{title}: {lds}, minus GGN {more}, {seconds:.2f} CPU s", flush=True)
    print(ceiling)
    pd.DataFrame(rows).to_csv(RESULTS / f"lds-{name}.csv", index=False, float_format="%.4f")


def print_table() -> None:
    table = pd.concat([pd.read_csv(path) for path in sorted(RESULTS.glob("lds-*.csv"))])
    names = [name for name in SETTINGS if name in set(table["setting"])]
    print("| method | " + " | ".join(f"{name} | CPU s" for name in names) + " |")
    print("|---|" + "---|---|" * len(names))
    for method in table.groupby("method")["lds"].mean().sort_values(ascending=False).index:
        cells = []
        for name in names:
            row = table[(table["setting"] == name) & (table["method"] == method)]
            if row.empty:
                cells += ["-", "-"]
            elif method == "ceiling":
                cells += [f"{row['lds'].item():.3f}", ""]
            else:
                one = row.iloc[0]
                cells += [
                    f"{one['lds']:.3f} [{one['low']:.3f}, {one['high']:.3f}]",
                    f"{one['cpu_s']:.2f}",
                ]
        print(f"| {method} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=("truth", "scores", "table"))
    parser.add_argument("setting", nargs="?", choices=list(SETTINGS), default="mlp")
    parser.add_argument(
        "--skip", default="nothing", help="leave out methods with this in their name"
    )
    parser.add_argument("--data", type=Path, default=Path("data"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    RESULTS.mkdir(exist_ok=True)
    if given.step == "table":
        print_table()
    elif given.step == "truth":
        make_truth(given.setting, given.data)
    else:
        make_scores(given.setting, given.data, given.skip)


if __name__ == "__main__":
    main()
