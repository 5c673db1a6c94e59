"""Does influence get better when the gradients are averaged over halves? Linear datamodeling scores.

Three settings (settings.py), the same 100 half-subsets × 3 seeds for all; every method's damping,
and the scale of the draws, are chosen on the first 40 subsets and 150 queries, and the table is of
the other 60 subsets and 150 queries. Times are CPU seconds of one thread after the training, for
all 300 queries.

    python experiments/influence/hybrid.py truth mlp --data DATA --cache CACHE   # 300 retrainings
    python experiments/influence/hybrid.py scores mlp --data DATA --cache CACHE  # results/hybrid-mlp-….csv
    python experiments/influence/hybrid.py table                                 # the tables of HYBRID.md
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from settings import SETTINGS, Setting, query_losses, trained
from torch import Generator, Tensor

from afterfit import Batches, Categorical, Problem
from afterfit.curvature import Curvature, ekfac, ggn
from afterfit.evaluate import (
    Retrainings,
    drawn_subsets,
    linear_datamodeling_difference,
    linear_datamodeling_interval,
    linear_datamodeling_score,
    truth_ceiling,
)
from afterfit.influence.classic import InfluenceFunction
from afterfit.influence.covariance import covariance, cross_influence, secant
from afterfit.influence.hybrid import HybridInfluence
from afterfit.influence.table import member_losses
from afterfit.problem.ensemble import Member
from afterfit.problem.persample import flatten, unflatten

RESULTS = Path(__file__).parent / "results"
SUBSETS, SEEDS, RESAMPLES = 100, (1000, 1001, 1002), 300
DAMPINGS = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
SCALES = (0.5, 1.0, 2.0)
PAIRS = 8
CURVATURES: dict[str, Curvature] = {"ggn": ggn, "ekfac": ekfac}


@dataclass(frozen=True)
class Case:
    """A trained network with its data, and the truth on both parts."""

    problem: Problem
    train: Batches
    query: Batches
    validation: Retrainings
    test: Retrainings

    def chosen_by(self, scores: Tensor) -> float:
        """LDS on the part on which everything is chosen."""
        return float(linear_datamodeling_score(scores[:150], self.validation).mean())


def make_truth(setting: Setting, path: Path) -> None:
    """Train on every half with every seed, and keep what the queries lose."""
    kept = drawn_subsets(len(setting.targets), SUBSETS, Generator().manual_seed(1))
    losses = torch.stack(
        [
            torch.stack(
                [query_losses(setting, trained(setting, row.nonzero()[:, 0], s)) for s in SEEDS]
            )
            for row in kept
        ]
    )
    torch.save({"kept": kept, "losses": losses}, path)


def case_of(setting: Setting, cache: Path, seed: int) -> Case:
    """Train the network that is explained, and read the truth."""
    stored = torch.load(cache / f"{setting.name}.pt", weights_only=True)
    kept, losses = stored["kept"], stored["losses"]
    if kept.dtype != torch.bool:
        kept = torch.zeros(len(kept), len(setting.targets), dtype=torch.bool).scatter_(
            1, kept, True
        )
    parts = [
        Retrainings(
            kept[rows],
            losses[rows][:, :, columns],
            torch.full_like(losses[rows][:, :, columns], torch.nan),
        )
        for rows, columns in ((slice(0, 40), slice(0, 150)), (slice(40, None), slice(150, None)))
    ]
    network = trained(setting, torch.arange(len(setting.targets)), seed)
    return Case(
        Problem.from_module(network, Categorical()),
        Batches((setting.inputs, setting.targets), batch_size=250),
        Batches((setting.query_inputs, setting.query_targets), batch_size=250),
        parts[0],
        parts[1],
    )


def secant_scores(case: Case, damping: float, curvature: Curvature) -> Tensor:
    """Covariance of the losses themselves over as many points as the hybrid visits."""
    method = HybridInfluence(InfluenceFunction(damping, curvature), pairs=PAIRS)
    moves = method.fit(case.problem, case.train).moves
    at = flatten(case.problem.params)
    points = [
        unflatten(at + sign * move, case.problem.params) for move in moves for sign in (1, -1)
    ]
    members = [Member(point, 0, k) for k, point in enumerate(points)]
    tables = [member_losses(case.problem, data, members) for data in (case.query, case.train)]
    return cross_influence(*tables, secant, covariance)


def timed(compute: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """What is computed, and its CPU seconds."""
    start = time.process_time()
    found = compute()
    return found, time.process_time() - start


def scored(case: Case, name: str, curvature: Curvature, seed: int) -> list[dict[str, object]]:
    """Scores with every damping and scale, and the chosen ones against their parent on the test."""
    found: dict[tuple[str, float], tuple[float, float, float, Tensor]] = {}

    def consider(method: str, scale: float, damping: float, scores: Tensor, seconds: float) -> None:
        value = case.chosen_by(scores)
        if value > found.get((method, scale), (-1.0, 0.0, 0.0, scores))[0]:
            found[method, scale] = (value, damping, seconds, scores)

    for damping in DAMPINGS:
        parent = InfluenceFunction(damping, curvature)
        scores, seconds = timed(lambda p=parent: p.fit(case.problem, case.train).scores(case.query))
        consider("parent", 0.0, damping, scores, seconds)
        for scale in SCALES:
            hybrid = HybridInfluence(parent, pairs=PAIRS, scale=scale)
            scores, seconds = timed(
                lambda h=hybrid: h.fit(case.problem, case.train).scores(case.query)
            )
            consider("hybrid", scale, damping, scores, seconds)
        scores, seconds = timed(lambda d=damping: secant_scores(case, d, curvature))
        consider("secant covariance", 1.0, damping, scores, seconds)

    base, rows = found["parent", 0.0][3], []
    for (method, scale), (value, damping, seconds, scores) in found.items():
        generator = Generator().manual_seed(0)
        whole = linear_datamodeling_interval(scores[150:], case.test, RESAMPLES, generator)
        more = linear_datamodeling_difference(
            scores[150:], base[150:], case.test, RESAMPLES, generator
        )
        rows.append(
            {
                "setting": name, "network": seed, "method": method, "scale": scale,
                "damping": damping, "validation": value, "test": whole.value, "low": whole.low,
                "high": whole.high, "gain": more.value, "gain_low": more.low,
                "gain_high": more.high, "seconds": seconds,
            }
        )  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def table() -> None:
    """Print the tables: the gain over the parent by scale, and the scale that the others choose."""
    read = pd.concat([pd.read_csv(path) for path in sorted(RESULTS.glob("hybrid-*.csv"))])
    names = ["curvature", "setting", "network"]
    for curvature, part in read.groupby("curvature"):
        hybrid = part[part.method == "hybrid"]
        by_scale = hybrid.groupby(["setting", "scale"]).validation.mean().unstack()
        relative = by_scale.sub(
            part[part.method == "parent"].groupby("setting").validation.mean(), axis=0
        )
        print(f"\n{curvature}: gain on the validation part, by scale\n{relative.round(4)}")
        for setting in relative.index:
            scale = relative.drop(setting).mean().idxmax() if len(relative) > 1 else 1.0
            print(f"{setting}: the other settings choose scale {scale}")
    shown = read.set_index(names)[
        [
            "method",
            "scale",
            "damping",
            "test",
            "low",
            "high",
            "gain",
            "gain_low",
            "gain_high",
            "seconds",
        ]
    ]
    print(shown.round(4).to_string())


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=["truth", "scores", "table"])
    parser.add_argument("setting", nargs="?", choices=list(SETTINGS))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--network", type=int, default=0, help="seed of the network explained")
    parser.add_argument("--curvature", choices=list(CURVATURES), default="ggn")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.task == "table":
        return table()
    setting = SETTINGS[asked.setting](asked.data)
    if asked.task == "truth":
        return make_truth(setting, asked.cache / f"{setting.name}.pt")
    case = case_of(setting, asked.cache, asked.network)
    print(setting.name, truth_ceiling(case.test))
    rows = scored(case, setting.name, CURVATURES[asked.curvature], asked.network)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"hybrid-{setting.name}-{asked.curvature}-{asked.network}.csv"
    pd.DataFrame(rows).assign(curvature=asked.curvature).to_csv(path, index=False)
    return None


if __name__ == "__main__":
    main()
