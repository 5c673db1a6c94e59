"""What the default costs: CPU seconds of `Unlearning` beside those of `GEX` with its search, in one run.

    python experiments/gex/cost.py --data DATA --features CACHE

Each cell trains its network once; then both methods judge it in turn, and the least of the times counts, so that what
else the machine does weighs little. One CPU thread.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
import trust

from afterfit import GEX, TrainingStream, Unlearning
from afterfit.influence.base import InfluenceMethod

CELLS = (
    "cancer-uniform-0.2-early-0",
    "cancer-uniform-0.2-memorized-0",
    "digits-uniform-0.1-early-0",
    "digits-uniform-0.1-memorized-0",
    "digits-asymmetric-0.2-memorized-0",
    "trec-uniform-0.2-early-0",
    "features-uniform-0.2-early-0",
    "features-uniform-0.2-memorized-0",
    "bank-uniform-0.1-early-0",
    "agclean-uniform-0.1-memorized-0",
)


def seconds(method: InfluenceMethod, here: trust.Case) -> float:
    """CPU seconds of judging all samples."""
    fit = TrainingStream(here.batches, 128, here.augment)
    begun = time.process_time()
    method.fit(here.problem, here.batches, fit)  # pyright: ignore[reportCallIssue]
    return time.process_time() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--features", type=Path, required=True, help="folder that features.py has filled"
    )
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'cell':36s} {'N':>6s} {'training':>9s} {'GEX':>7s} {'default':>8s} {'ratio':>6s}")
    ratios = []
    for name in CELLS:
        here = trust.case(name, options.data, options.features)
        both = [(seconds(GEX(), here), seconds(Unlearning(), here)) for _ in range(options.rounds)]
        before, now = (min(times) for times in zip(*both, strict=True))
        ratios.append(now / before)
        print(
            f"{name:36s} {len(here.wrong):6d} {here.trained.cpu_seconds:9.2f} {before:7.2f} {now:8.2f} {ratios[-1]:6.2f}",
            flush=True,
        )
    print(f"median ratio {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
