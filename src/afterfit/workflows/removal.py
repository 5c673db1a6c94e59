"""What happens when samples are really taken away: curves, brittleness, and a check of unlearning.

All trainings of one question go through one map, so that they can run on many machines
(:mod:`afterfit.parallel`).
"""

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import spearmanr
from torch import Generator, Tensor

from afterfit.problem.data import Batches
from afterfit.problem.likelihood import Likelihood
from afterfit.workflows.retraining import SeededRetrain, retrain_on


def select(scores: Float[Tensor, "Q N"], num: int) -> Int[Tensor, " K"]:
    """Positions of the samples that are worth most to the queries, in their order.

    The worth of a sample is the sum of its scores: without it the queries' loss would rise by so
    much. What ``prune`` with a number takes away are the samples worth least.
    """
    if not 0 < num <= scores.shape[1]:
        message = f"num is {num}, expected between 1 and {scores.shape[1]}, the number of samples"
        raise ValueError(message)
    order = scores.sum(0).cpu().argsort(descending=True, stable=True)
    return order[:num].sort().values


def removal_curve(
    retrain: SeededRetrain,
    train: Batches,
    query: Batches,
    rankings: Mapping[str, Float[Tensor, " N"]],
    shares: Sequence[float] = (0.1, 0.2, 0.4),
    seeds: Sequence[int] = (0, 1, 2),
    likelihood: Likelihood | None = None,
) -> pd.DataFrame:
    """Loss and accuracy after training without the highest of each ranking, and without a draw.

    Parameters
    ----------
    rankings
        By name, what is taken away first, the highest first: ``scores.sum(0)`` takes away the most
        valuable samples, ``-scores.sum(0)`` the most harmful, self-influence the memorized.
    shares
        Of the samples that are taken away, besides none at all.

    Returns
    -------
    pandas.DataFrame
        One row for each ranking (``"random"`` among them) and share: ``ranking``, ``share``,
        ``removed``, ``loss`` in nats and ``accuracy`` on the queries, each with its standard error
        over the seeds.
    """
    bad = [share for share in shares if not 0 < share < 1]
    if bad:
        message = f"shares hold {bad}, expected numbers between 0 and 1"
        raise ValueError(message)
    num = train.num_samples
    drawn = torch.rand(num, generator=Generator().manual_seed(0))
    plans: list[tuple[str, float, int]] = []
    rows: list[Tensor] = []
    for name, ranking in {**rankings, "random": drawn}.items():
        order = ranking.cpu().argsort(descending=True, stable=True)
        for share in (0.0, *shares):
            removed = int(share * num)
            plans.append((name, share, removed))
            rows.append(_without(order[:removed], num))
    kept = torch.stack(rows)
    unique, place = kept.unique(dim=0, return_inverse=True)  # nothing is removed once, not thrice
    found = retrain_on(retrain, train, query, unique, seeds, likelihood)
    loss, hit = found.losses.mean(2)[place], found.correct.mean(2)[place]
    table = pd.DataFrame(plans, columns=["ranking", "share", "removed"])
    for name, values in (("loss", loss), ("accuracy", hit)):
        table[name] = values.mean(1).numpy()
        table[f"{name}_stderr"] = (values.std(1) / len(seeds) ** 0.5).numpy()
    return table


def brittleness(
    retrain: SeededRetrain,
    train: Batches,
    query: Batches,
    scores: Float[Tensor, "Q N"],
    counts: Sequence[int],
    seeds: Sequence[int] = (0,),
    likelihood: Likelihood | None = None,
) -> pd.DataFrame:
    """How few of its proponents must go until a prediction is wrong: Q × counts trainings a seed.

    Pass queries that the network gets right. The fewer samples a method needs, the better it found
    what the prediction rests on; removing at random is the comparison.

    Returns
    -------
    pandas.DataFrame
        For each count: ``removed``, ``flipped`` (share of the queries that most trainings without
        their proponents get wrong) and ``loss``, their mean loss.

    References
    ----------
    Ilyas, Park, Engstrom, Leclerc and Madry (2022), Datamodels: predicting predictions from
    training data, ICML, section 4.2. arXiv:2202.00622
    """
    num_queries, num = scores.shape
    if not counts or not all(0 < count < num for count in counts):
        message = f"counts are {list(counts)}, expected numbers between 1 and {num - 1}"
        raise ValueError(message)
    order = scores.cpu().argsort(dim=1, descending=True, stable=True)
    kept = torch.stack([_without(order[q, :k], num) for k in counts for q in range(num_queries)])
    found = retrain_on(retrain, train, query, kept, seeds, likelihood)
    own = torch.arange(num_queries)
    shape = (len(counts), num_queries, len(seeds), num_queries)
    hit = found.correct.view(shape)[:, own, :, own].mean(2)  # (Q, counts)
    loss = found.losses.view(shape)[:, own, :, own].mean((0, 2))
    flipped = (hit < 0.5).double().mean(0)
    return pd.DataFrame({"removed": counts, "flipped": flipped.numpy(), "loss": loss.numpy()})


def unlearning_check(
    retrain: SeededRetrain,
    train: Batches,
    query: Batches,
    groups: Sequence[Int[Tensor, " _"]],
    scores: Float[Tensor, "Q N"],
    seeds: Sequence[int] = (0, 1, 2),
    likelihood: Likelihood | None = None,
) -> pd.DataFrame:
    """Compare the influence of whole groups with training without them.

    The influence of a group is the sum over its members, to first order. Scores that leave out the
    factor 1/N, as those of the influence function do, foretell a rise of ``sum / N`` nats.

    Returns
    -------
    pandas.DataFrame
        One row for each group: ``size``, ``foretold`` and ``true`` mean rise of the queries' loss,
        in nats, ``stderr`` of the truth over the seeds, and ``correlation`` (Spearman) of foretold
        and true rises over the queries.
    """
    num = train.num_samples
    everything = torch.ones(1, num, dtype=torch.bool)
    kept = torch.cat([everything, *(_without(group, num)[None] for group in groups)])
    found = retrain_on(retrain, train, query, kept, seeds, likelihood).losses.double()
    rise = found[1:] - found[:1]  # (G, R, Q), each seed against itself
    rows = []
    for group, risen in zip(groups, rise, strict=True):
        foretold = scores[:, group].double().sum(1).cpu() / num
        over_seeds = risen.mean(1)
        rows.append(
            {
                "size": len(group),
                "foretold": float(foretold.mean()),
                "true": float(risen.mean()),
                "stderr": float(over_seeds.std() / len(seeds) ** 0.5),
                "correlation": float(spearmanr(foretold, risen.mean(0))[0]),  # pyright: ignore
            }
        )
    return pd.DataFrame(rows)


def _without(group: Tensor, num: int) -> Bool[Tensor, " N"]:
    kept = torch.ones(num, dtype=torch.bool)
    kept[group.cpu()] = False
    return kept
