"""E5: which sharpness orders networks by their generalization gap?

    python experiments/ctk/e5.py                      # squared loss, about 2 minutes
    python experiments/ctk/e5.py --loss cross-entropy

24 networks on 200 digits: width {4, 8} x learning rate {.02, .1} x batch {16, 100} x weight decay {0, 5e-4, 5e-3}. Target:
test loss minus training loss. Printed: Kendall's tau and the granulated correlation with 95 % bootstrap intervals over
networks, and the correlation along each axis; then the values of the specification's own 24 networks.

Allowed (squared loss): connectivity sharpness is ahead of the tangent trace in tau and in the granulated correlation, and
along weight decay its correlation is positive. 24 networks decide little: see the intervals.
"""

import argparse
import itertools
import json
from pathlib import Path

import torch
from digits import cnn, cross_entropy, digits, error, mean_loss, squared, train

from afterfit import Batches, Categorical, Problem
from afterfit.evaluate import kendall_interval
from afterfit.problem import Gaussian
from afterfit.workflows.compare import COMPARED, compare

LOSSES = {"squared": squared, "cross-entropy": cross_entropy}
GRID = {"width": (4, 8), "rate": (0.02, 0.1), "batch": (16, 100), "decay": (0.0, 5e-4, 5e-3)}
STEPS, TRAIN = 1000, 200
EXPECTED = """specification (squared loss)       tr NTK     CS     FR   norm
  Kendall                            .493   .768   .710   .507
  granulated                         .396   .812   .667   .688
  along weight decay                 -.42   +.92    .83    .92
specification (cross-entropy): Kendall tr NTK .51, CS .38, connectivity curvature .59, CS / logit variance .46"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--loss", choices=LOSSES, default="squared")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    loss = LOSSES[options.loss]
    x, y = digits(0)
    rows = list(itertools.product(*GRID.values()))
    problems, gaps, error_gaps = [], [], []
    for seed, (width, rate, batch, decay) in enumerate(rows):
        network = train(
            cnn(width, seed),
            x[:TRAIN],
            y[:TRAIN],
            loss,
            rate=rate,
            batch=batch,
            decay=decay,
            steps=STEPS,
            seed=seed,
        )
        inside, outside = (x[:TRAIN], y[:TRAIN]), (x[TRAIN:], y[TRAIN:])
        gaps.append(mean_loss(network, *outside, loss) - mean_loss(network, *inside, loss))
        error_gaps.append(error(network, *outside) - error(network, *inside))
        likelihood = Gaussian(1.0) if options.loss == "squared" else Categorical()
        problems.append(Problem.from_module(network.double(), likelihood))
    targets = (
        torch.nn.functional.one_hot(y[:TRAIN], 10).double()
        if options.loss == "squared"
        else y[:TRAIN]
    )
    data = Batches((x[:TRAIN].double(), targets), 100)
    axes = {name: [row[i] for row in rows] for i, name in enumerate(GRID)}
    gap = torch.tensor(gaps, dtype=torch.float64)
    found = compare(problems, data, gap, axes=axes, num_resamples=2000)
    report(
        options.loss, found.correlations, found.table, torch.tensor(error_gaps, dtype=torch.float64)
    )
    options.results.mkdir(exist_ok=True)
    table = found.table.assign(error_gap=error_gaps)
    text = json.dumps(
        {"networks": table.to_dict("records"), "correlations": found.correlations.to_dict("index")},
        indent=1,
    )
    (options.results / f"e5-{options.loss}.json").write_text(text + "\n")
    if options.loss == "squared":
        check(found.correlations)


def report(loss: str, correlations, table, error_gap: torch.Tensor) -> None:
    print(
        f"{len(table)} networks, {loss}; loss gaps {table.target.min():.3f} to {table.target.max():.3f}"
    )
    print(
        f"{'measure':35s}{'tau':>22s}{'granulated':>24s}   psi by axis: {', '.join(GRID)};   tau with the error gap"
    )
    for name in COMPARED:
        line = correlations.loc[name]
        tau = f"{line.kendall:+.3f} [{line.low:+.2f}, {line.high:+.2f}]"
        whole = f"{line.granulated:+.3f} [{line['granulated low']:+.2f}, {line['granulated high']:+.2f}]"
        parts = " ".join(f"{line[f'psi {axis}']:+.2f}" for axis in GRID)
        column = torch.tensor(table[name].to_numpy())
        other = kendall_interval(column, error_gap, 2000, torch.Generator().manual_seed(0))
        print(f"{name:35s}{tau:>22s}{whole:>24s}   {parts}   {other}")
    print(EXPECTED)


def check(correlations) -> None:
    sharp, tangent = correlations.loc["connectivity sharpness"], correlations.loc["tangent trace"]
    assert sharp.kendall > tangent.kendall
    assert sharp.granulated > tangent.granulated
    assert sharp["psi decay"] > 0


if __name__ == "__main__":
    main()
