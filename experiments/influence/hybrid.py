"""Does influence get better when the gradients are averaged over halves? Linear datamodeling scores.

Three settings (settings.py), the same 100 half-subsets × 3 seeds for all; every method's damping,
and the scale of the draws, are chosen on the first 40 subsets and 150 queries, and the table is of
the other 60 subsets and 150 queries. Times are CPU seconds of one thread after the training, for
all 300 queries.

    python experiments/influence/hybrid.py truth mlp --data DATA --cache CACHE   # 300 retrainings
    python experiments/influence/hybrid.py scores mlp --data DATA --cache CACHE  # results/hybrid-mlp-….csv
    python experiments/influence/hybrid.py pilot mlp --data DATA --cache CACHE
    python experiments/influence/hybrid.py table                                 # the tables of HYBRID.md
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import pandas as pd
import torch
from settings import SETTINGS, Setting, query_losses, trained
from torch import Generator, Tensor

from afterfit import Batches, Categorical, Problem
from afterfit.curvature import Curvature, Inverse, ekfac, ggn
from afterfit.evaluate import (
    Retrainings,
    drawn_subsets,
    linear_datamodeling_difference,
    linear_datamodeling_interval,
    linear_datamodeling_score,
    truth_ceiling,
)
from afterfit.influence.classic import InfluenceFunction, influence_by
from afterfit.influence.covariance import covariance, cross_influence, there_minus_here
from afterfit.influence.hybrid import HybridInfluence, SmoothedInfluence
from afterfit.influence.table import member_losses
from afterfit.problem.ensemble import Member
from afterfit.problem.persample import flatten, gradients, losses, unflatten

RESULTS = Path(__file__).parent / "results"
SUBSETS, SEEDS, RESAMPLES = 100, (1000, 1001, 1002), 300
DAMPINGS = (1e-2, 3e-2, 1e-1)
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


@dataclass(frozen=True)
class Prepared:
    """A parent whose inverse is made once for all scales; its time is counted for each."""

    inverse: Inverse

    def prepare(self, problem: Problem, train: Batches) -> Inverse:  # noqa: ARG002
        return self.inverse


def secant_scores(case: Case, found: SmoothedInfluence) -> Tensor:
    """Covariance of the losses themselves over the points that the hybrid visits."""
    at, like = flatten(case.problem.params), case.problem.params
    points = [unflatten(at + sign * move, like) for move in found.moves for sign in (1, -1)]
    members = [Member(point, 0, k) for k, point in enumerate(points)]
    asked, own = (member_losses(case.problem, data, members) for data in (case.query, case.train))
    return cross_influence(asked, own, there_minus_here, covariance)


Found = TypeVar("Found")


def timed(compute: Callable[[], Found]) -> tuple[Found, float]:
    """What is computed, and its CPU seconds."""
    start = time.process_time()
    found = compute()
    return found, time.process_time() - start


def scored(case: Case, asked: argparse.Namespace) -> list[dict[str, object]]:
    """Scores with every damping and scale, and the chosen ones against their parent on the test."""
    curvature = CURVATURES[asked.curvature]
    found: dict[tuple[str, float], tuple[float, float, float, Tensor]] = {}

    def consider(method: str, scale: float, damping: float, scores: Tensor, seconds: float) -> None:
        value = case.chosen_by(scores)
        if value > found.get((method, scale), (-1.0, 0.0, 0.0, scores))[0]:
            found[method, scale] = (value, damping, seconds, scores)

    for damping in asked.dampings:
        start = time.process_time()
        inverse = InfluenceFunction(damping, curvature).prepare(case.problem, case.train)
        prepared = time.process_time() - start
        linear = influence_by(inverse, case.problem, case.train)
        scores, seconds = timed(lambda f=linear: f.scores(case.query))
        consider("parent", 0.0, damping, scores, prepared + seconds)
        for scale in asked.scales:
            hybrid = HybridInfluence(Prepared(inverse), pairs=asked.pairs, scale=scale)
            fitted, drawn = timed(lambda h=hybrid: h.fit(case.problem, case.train))
            scores, seconds = timed(lambda f=fitted: f.scores(case.query))
            consider("hybrid", scale, damping, scores, prepared + drawn + seconds)
            scores, seconds = timed(lambda f=fitted: secant_scores(case, f))
            consider("secant covariance", scale, damping, scores, prepared + drawn + seconds)

    base, rows = found["parent", 0.0][3], []
    for (method, scale), (value, damping, seconds, scores) in found.items():
        generator = Generator().manual_seed(0)
        whole = linear_datamodeling_interval(scores[150:], case.test, RESAMPLES, generator)
        more = linear_datamodeling_difference(
            scores[150:], base[150:], case.test, RESAMPLES, generator
        )
        rows.append(
            {
                "setting": asked.setting, "network": asked.network, "method": method,
                "pairs": asked.pairs, "scale": scale,
                "damping": damping, "validation": value, "test": whole.value, "low": whole.low,
                "high": whole.high, "gain": more.value, "gain_low": more.low,
                "gain_high": more.high, "seconds": seconds,
            }
        )  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def odd_part_scores(case: Case, found: SmoothedInfluence) -> Tensor:
    """The pilot: exact linear scores, and the covariance of odd moves less that of tangents."""
    at, like, size = flatten(case.problem.params), case.problem.params, case.train.num_samples
    sides = []
    for data in (case.query, case.train):
        ends = [
            torch.stack(
                [losses(case.problem, data, unflatten(at + s * m, like)) for m in found.moves]
            )
            for s in (1, -1)
        ]
        rows = torch.cat([rows for _, rows in gradients(case.problem, data)])
        sides.append(((ends[0] - ends[1]) / 2, found.moves @ rows.mT))
    (odd_q, tangent_q), (odd_n, tangent_n) = sides
    noise = (odd_q.mT @ odd_n - tangent_q.mT @ tangent_n) * size / len(found.moves)
    return found.parent_scores(case.query) + noise


def pilot(case: Case, damping: float) -> None:
    """Print what losses and gradients give at the same few draws, of both laws."""
    problem, train, num = case.problem, case.train, case.train.num_samples
    inverse = InfluenceFunction(damping).prepare(problem, train)
    halves = HybridInfluence(Prepared(inverse), pairs=PAIRS).fit(problem, train)
    matrix = ggn(problem, train).to_dense().double() / num
    matrix.diagonal().add_(damping)
    noise = torch.randn(
        problem.num_params, PAIRS, generator=Generator().manual_seed(0), dtype=torch.float64
    )
    factor = torch.linalg.cholesky(matrix)
    drawn = torch.linalg.solve_triangular(factor.mT, noise, upper=True).mT / num**0.5
    laws = {"halves": halves, "Laplace": replace(halves, moves=drawn.to(problem.dtype))}
    for law, whole in laws.items():
        for scale in (0.1, 0.3, 1.0, 2.0):
            found = replace(whole, moves=scale * whole.moves)
            linear = found.parent_scores(case.query)
            odd = linear + (odd_part_scores(case, found) - linear) / scale**2
            shown = {
                "averaged gradients": found.scores(case.query),
                "odd part, control variate": odd,
                "secant covariance": secant_scores(case, found),
            }
            print(
                law, scale, {n: round(case.chosen_by(s), 4) for n, s in shown.items()}, flush=True
            )


def table() -> None:
    """Print the tables: the gain over the parent by scale, and the scale that the others choose."""
    read = pd.concat([pd.read_csv(path) for path in sorted(RESULTS.glob("hybrid-*-8.csv"))])
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
    parser = argparse.ArgumentParser(description="Influence with averaged gradients")
    parser.add_argument("task", choices=["truth", "scores", "pilot", "table"])
    parser.add_argument("setting", nargs="?", choices=list(SETTINGS))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--network", type=int, default=0, help="seed of the network explained")
    parser.add_argument("--curvature", choices=list(CURVATURES), default="ggn")
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--scales", type=float, nargs="+", default=SCALES)
    parser.add_argument("--dampings", type=float, nargs="+", default=DAMPINGS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.task == "table":
        return table()
    setting = SETTINGS[asked.setting](asked.data)
    if asked.task == "truth":
        return make_truth(setting, asked.cache / f"{setting.name}.pt")
    case = case_of(setting, asked.cache, asked.network)
    print(setting.name, truth_ceiling(case.test))
    if asked.task == "pilot":
        return pilot(case, damping=0.01)
    rows = scored(case, asked)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"hybrid-{setting.name}-{asked.curvature}-{asked.network}-{asked.pairs}.csv"
    pd.DataFrame(rows).assign(curvature=asked.curvature).to_csv(path, index=False)
    return None


if __name__ == "__main__":
    main()
