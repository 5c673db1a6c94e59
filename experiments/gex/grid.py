"""One cell of cells.py under fixed temperatures: what clipping, weight decay and the rate do to average precision.

    python experiments/gex/grid.py --data DATA --features CACHE --cell digits-uniform-0.1-memorized-0

Four members a setting, no search. The truth is used to print average precision, as NOTES.md tells; nothing is chosen.
"""

import argparse
from functools import partial
from pathlib import Path

import cells
import networks
import torch

from afterfit import GEX, Batches, Categorical, GeometricEnsemble, Problem, TrainingStream
from afterfit.evaluate import average_precision, otsu
from afterfit.influence import loss_there, product_of_means, uncentered_moment
from afterfit.influence.covariance import self_influence
from afterfit.problem import losses
from afterfit.sampling import Diverged, cosine, warm_cosine

SHAPES = {
    "cosine": partial(GeometricEnsemble, schedule=cosine, clip=None),
    "warm, clipped": partial(GeometricEnsemble, schedule=warm_cosine, clip=1.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--features", type=Path)
    parser.add_argument("--cell", default="digits-uniform-0.1-memorized-0")
    parser.add_argument("--decays", type=float, nargs="+", default=[5e-4, 0.1])
    parser.add_argument("--rates", type=float, nargs="+", default=[0.1, 0.2, 0.4, 0.8, 1.6])
    options = parser.parse_args()
    torch.set_num_threads(1)
    job = cells.job(options.cell, options.data, options.features)
    seed = int(options.cell.rsplit("-", 1)[1])
    trained = networks.train(
        job.make(seed), job.inputs, job.labels, job.regime, seed, job.peak_rate
    )
    problem = Problem.from_module(trained.network, Categorical())
    batches = Batches((job.inputs, job.labels), 512)
    loss = average_precision(losses(problem, batches), job.wrong)
    print(f"{options.cell}: train accuracy {trained.train_accuracy:.3f}, AP of the loss {loss:.3f}")
    print("AP of the default score, of the published moves and moment, and Otsu's separability")
    for name, sampler in SHAPES.items():
        for decay in options.decays:
            for rate in options.rates:
                stream = TrainingStream(batches, 128, job.augment)
                method = GEX(members=4, learning_rate=rate, weight_decay=decay, sampler=sampler)
                try:
                    table = method.fit(problem, batches, stream).table
                    default = self_influence(table, loss_there, product_of_means)
                    separability = otsu(default.sqrt()).separability
                except (Diverged, ValueError):  # losses, or their squares, are not finite
                    print(f"{name:14s} decay {decay:<7g} rate {rate:<5g} diverged")
                    continue
                after = torch.arange(table.columns.shape[1]) < 4  # the losses at the members
                members = table.columns[:, after] - table.trained[:, None]
                paper = uncentered_moment(members).square().mean(1)
                print(
                    f"{name:14s} decay {decay:<7g} rate {rate:<5g} "
                    f"{average_precision(default, job.wrong):.3f} "
                    f"{average_precision(paper, job.wrong):.3f} "
                    f"{separability:.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
