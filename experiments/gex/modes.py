"""One mode or two: how the self-influence of clean and of wrong labels is distributed, on protocol A of acceptance.py.

    python experiments/gex/modes.py --data DATA --picture docs/assets/modes.png

For each score: Hartigan's dip test on its root and on its logarithm (p small: more than one mode), the gain in BIC of
two normal components over one on the same, and the share of wrong labels that Otsu's threshold on the root flags.
"""

import argparse
from pathlib import Path

import acceptance
import data as sets
import matplotlib
import networks
import noise
import numpy as np
import torch
from modality import dip, two_component_mixture
from torch import Generator, Tensor

from afterfit import Batches, Categorical, Problem
from afterfit.evaluate import average_precision


def scores_of(folder: Path, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """Self-influence by every method, and which labels are wrong."""
    loaded = sets.mnist(folder, 2000, 2000, seed)
    labels, wrong = noise.uniform(loaded.labels, 0.1, 10, np.random.default_rng(seed))
    network = acceptance.memorized(loaded.inputs, labels, None, 40, seed)
    problem = Problem.from_module(network, Categorical())
    train = Batches((loaded.inputs, labels), 512)
    found = acceptance.fit(problem, train, networks.shift(3, "constant"), seed)
    linear = acceptance.bilinear(problem, train, seed)
    named = {"gradient norm": "squared gradient norm"}
    return {
        **{named.get(name, name): values for name, values in linear.items()},
        "GEX": found.self_scores(),
    }, wrong


def draw(scores: dict[str, Tensor], wrong: Tensor, path: Path) -> None:
    """A histogram of the logarithm of each score, clean and wrong apart."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, len(scores), figsize=(3.1 * len(scores), 2.6), layout="constrained"
    )
    for axis, (name, values) in zip(axes, scores.items(), strict=True):
        logs = values.double().clamp_min(1e-30).log10()
        bins = np.linspace(float(logs.quantile(0.002)), float(logs.max()), 50)
        axis.hist(
            [logs[~wrong], logs[wrong]], bins=bins, stacked=True,
            color=["#9aa5b1", "#c8452b"], label=["right label", "wrong label"],
        )  # fmt: skip
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("log10 self-influence", fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    axes[0].set_ylabel("samples", fontsize=9)
    axes[-1].legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    scores, wrong = scores_of(options.data, options.seed)
    print(f"{len(wrong)} samples, {int(wrong.sum())} with a wrong label")
    print(
        f"{'score':24s} {'AP':>6s} {'dip p, root':>12s} {'dip p, log':>11s} {'BIC root':>9s} {'BIC log':>9s} {'Otsu recall':>12s}"
    )
    for name, values in scores.items():
        positive = values.double().clamp_min(1e-30)
        row = []
        for view in (positive.sqrt(), positive.log()):
            generator = Generator().manual_seed(options.seed)
            row.append((dip(view, generator, 500).pvalue, two_component_mixture(view).bic_gain))
        recall = acceptance.precision_recall(values, wrong)[1]
        print(
            f"{name:24s} {average_precision(values, wrong):6.3f} {row[0][0]:12.3f} {row[1][0]:11.3f} "
            f"{row[0][1]:9.0f} {row[1][1]:9.0f} {recall:12.3f}"
        )
    if options.picture is not None:
        draw(scores, wrong, options.picture)


if __name__ == "__main__":
    main()
