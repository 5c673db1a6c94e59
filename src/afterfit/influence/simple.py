"""Cheap scores of how suspicious each sample is, to compare every other method with.

Each function returns one number a sample, and large means suspicious. None of them is an influence:
they say nothing of pairs.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from sklearn.neighbors import NearestNeighbors
from torch import Generator, Tensor

from afterfit.influence.tracin import gradient_norms
from afterfit.problem.data import Batches
from afterfit.problem.likelihood import Outcomes
from afterfit.problem.persample import losses, outputs
from afterfit.problem.problem import Problem, move


def _by_batch(
    problem: Problem, data: Batches, score: Callable[[Outcomes], Tensor]
) -> Float[Tensor, " N"]:
    """Score the outcomes of each batch, in float64: confident logits differ in the last digits."""
    columns = []
    with torch.inference_mode():
        for batch in data:
            found = problem.forward(problem.params, move(batch.inputs, problem.device))
            targets = batch.targets.to(problem.device)
            problem.likelihood.check(found, targets)
            columns.append(score(problem.likelihood.outcomes(found.double(), targets)))
    scores = torch.cat(columns).clone()
    return _require_finite(scores, "scores", "look at the inputs and at the parameters")


def loss_scores(problem: Problem, data: Batches) -> Float[Tensor, " N"]:
    """Loss of each sample in nats: what the network fits badly."""
    return losses(problem, data)


def margin_scores(problem: Problem, data: Batches) -> Float[Tensor, " N"]:
    """Largest other logit minus the given one; positive where the network disagrees.

    In logits, since the probabilities of a memorized network all round to 1. Bernoulli: the
    outcomes of an output have logits 0 and f, the given one is that with the larger target, and the
    output that disagrees most is the sample's.
    """
    return _by_batch(problem, data, lambda found: found.opposition().amax(-1))


def entropy_scores(problem: Problem, data: Batches) -> Float[Tensor, " N"]:
    """Entropy of the predicted label in nats, which never looks at the given one.

    Bernoulli: the sum over its outputs, which are independent.
    """

    def entropy(found: Outcomes) -> Float[Tensor, " B"]:
        return torch.special.entr(found.logits.softmax(-1)).sum((-2, -1))

    return _by_batch(problem, data, entropy)


def self_confidence_scores(problem: Problem, data: Batches) -> Float[Tensor, " N"]:
    """Probability that the network gives to other labels, ``1 - p(given)``.

    Bernoulli: of the output that disagrees most; with a target y between 0 and 1, p(given) is the
    probability ``y p + (1 - y)(1 - p)`` that two draws agree.
    """

    def doubt(found: Outcomes) -> Float[Tensor, " B"]:
        return (found.logits.softmax(-1) * (1 - found.given)).sum(-1).amax(-1)

    return _by_batch(problem, data, doubt)


def el2n_scores(problems: Problem | Sequence[Problem], data: Batches) -> Float[Tensor, " N"]:
    """Error norm ``‖p - y‖₂``, averaged over networks; meant for several, early in training.

    ``y`` is one-hot for Categorical, the vector of targets for Bernoulli.

    References
    ----------
    Paul, Ganguli, Dziugaite (2021), "Deep learning on a data diet", NeurIPS, arXiv:2107.07075,
    definition 2.3.
    """

    def norm(found: Outcomes) -> Float[Tensor, " B"]:
        return found.residual.norm(dim=-1)

    return _averaged(problems, lambda problem: _by_batch(problem, data, norm))


def gradient_norm_scores(
    problems: Problem | Sequence[Problem], data: Batches
) -> Float[Tensor, " N"]:
    """Norm ``‖g_n‖₂`` of the loss gradient, averaged over networks (GraNd).

    References
    ----------
    Paul, Ganguli, Dziugaite (2021), "Deep learning on a data diet", NeurIPS, arXiv:2107.07075,
    definition 2.1.
    """
    return _averaged(problems, lambda problem: gradient_norms(problem, data).sqrt())


def _averaged(
    problems: Problem | Sequence[Problem], score: Callable[[Problem], Tensor]
) -> Float[Tensor, " N"]:
    networks = [problems] if isinstance(problems, Problem) else problems
    if not networks:
        message = "there are no networks, expected at least one"
        raise ValueError(message)
    return torch.stack([score(problem) for problem in networks]).mean(0)


def mean_loss_scores(loss_table: Float[Tensor, "N M"]) -> Float[Tensor, " N"]:
    """Mean of each sample's losses over members or epochs; NaN marks a loss that was not seen.

    Raises
    ------
    ValueError
        If a sample was never seen, or a loss is infinite.
    """
    _require_axes(loss_table, "loss_table", ("samples", "members"))
    hint = "train until all samples are seen"
    return _require_finite(loss_table.nanmean(1), "mean losses", hint)


def aum_scores(margins_trace: Float[Tensor, "E N"]) -> Float[Tensor, " N"]:
    """Minus the area under the margin: the mean over epochs of given minus largest other logit.

    An epoch's row is ``-margin_scores(problem, data)``: positive where the network agrees.

    References
    ----------
    Pleiss, Zhang, Elenberg, Weinberger (2020), "Identifying mislabeled data using the area under
    the margin ranking", NeurIPS, arXiv:2001.10528, eq. (2).
    """
    _require_axes(margins_trace, "margins_trace", ("epochs", "samples"))
    return -_require_finite(margins_trace, "margins", "drop those epochs").mean(0)


def forgetting_scores(correct_trace: Bool[Tensor, "E N"]) -> Float[Tensor, " N"]:
    """How often a sample went from right to wrong from one epoch to the next.

    A sample that was never right was never forgotten either; as in the paper it comes before all
    others, here with one more than the largest count.

    References
    ----------
    Toneva, Sordoni, Tachet des Combes, Trischler, Bengio, Gordon (2019), "An empirical study of
    example forgetting during deep neural network learning", ICLR, arXiv:1812.05159.
    """
    _require_axes(correct_trace, "correct_trace", ("epochs", "samples"))
    if correct_trace.dtype != torch.bool:
        message = (
            f"correct_trace has dtype {correct_trace.dtype}, expected bool: whether each sample "
            "was predicted right in each epoch"
        )
        raise ValueError(message)
    counts = (correct_trace[:-1] & ~correct_trace[1:]).sum(0)
    never = ~correct_trace.any(0)
    return torch.where(never, counts.max() + 1, counts).to(torch.get_default_dtype())


def knn_scores(
    features: Float[Tensor, "N D"], labels: Int[Tensor, " N"], num_neighbors: int = 10
) -> Float[Tensor, " N"]:
    """Share of the nearest neighbors, without the sample itself, that have another label.

    ``features`` are what the network sees of a sample: its outputs, or a layer before them.

    References
    ----------
    Wilson (1972), "Asymptotic properties of nearest neighbor rules using edited data", IEEE
    Transactions on Systems, Man, and Cybernetics 2(3).
    """
    _require_axes(features, "features", ("samples", "features"))
    _require_finite(features, "features", "look at the inputs and at the parameters")
    _require_labels(labels, features, "features")
    if not 1 <= num_neighbors < len(features):
        message = (
            f"num_neighbors is {num_neighbors}, expected between 1 and {len(features) - 1}: there "
            f"are {len(features)} samples"
        )
        raise ValueError(message)
    search = NearestNeighbors(n_neighbors=num_neighbors).fit(features.detach().cpu().numpy())
    neighbors = torch.as_tensor(search.kneighbors(return_distance=False)).to(labels.device)
    disagree = labels[neighbors] != labels[:, None]
    return disagree.to(features.dtype).mean(1)


def confident_learning_scores(
    probabilities: Float[Tensor, "N C"], labels: Int[Tensor, " N"]
) -> Float[Tensor, " N"]:
    """Margin of held-out probabilities, ``(1 + max_{c ≠ y} p_c - p_y) / 2``, between 0 and 1.

    One minus the normalized margin by which confident learning ranks label issues.
    ``probabilities`` must come from networks that have not seen the sample:
    :func:`cross_validated_probabilities`.

    References
    ----------
    Northcutt, Jiang, Chuang (2021), "Confident learning: estimating uncertainty in dataset labels",
    JAIR 70, arXiv:1911.00068, section 3.2.
    """
    given = _given_probability(probabilities, labels)
    others = probabilities.scatter(1, labels.long()[:, None], -torch.inf).amax(1)
    return (1 + others - given) / 2


def held_out_confidence_scores(
    probabilities: Float[Tensor, "N C"], labels: Int[Tensor, " N"]
) -> Float[Tensor, " N"]:
    """One minus the held-out probability of the given label, its self-confidence.

    See :func:`confident_learning_scores` for where the probabilities come from, and the reference.
    """
    return 1 - _given_probability(probabilities, labels)


def cross_validated_probabilities(
    train_network: Callable[[Batches], Problem],
    data: Batches,
    num_folds: int,
    generator: Generator,
) -> Float[Tensor, "N C"]:
    """Probabilities of each sample's labels by a network that was trained without it.

    Folds are drawn at random with the labels (the first output's, if there are several) spread
    evenly, so that no class is missing from a fold that could have it.

    Parameters
    ----------
    train_network
        Trains a new network on a part of the data.

    Raises
    ------
    ValueError
        If there are fewer than two folds, or more folds than samples.
    TypeError
        If the likelihood has no probabilities.
    """
    if not 2 <= num_folds <= data.num_samples:
        message = f"num_folds is {num_folds}, expected between 2 and {data.num_samples} samples"
        raise ValueError(message)
    labels = data.targets().reshape(data.num_samples, -1)[:, 0].cpu()
    order = torch.randperm(data.num_samples, generator=generator)
    order = order[labels[order].argsort(stable=True)]
    folds = [order[fold::num_folds] for fold in range(num_folds)]
    rows: list[Tensor] = []
    for held_out in folds:
        kept = torch.ones(data.num_samples, dtype=torch.bool).index_fill(0, held_out, 0)
        problem = train_network(data.subset(kept.nonzero()[:, 0]))
        rows.append(_probabilities(problem, data.subset(held_out)))
    return torch.cat(rows)[torch.cat(folds).argsort()]


def _probabilities(problem: Problem, data: Batches) -> Tensor:
    found = outputs(problem, data)
    problem.likelihood.outcomes(found, data.targets().to(found.device))
    return problem.likelihood.mean(found)


def _given_probability(probabilities: Tensor, labels: Tensor) -> Float[Tensor, " N"]:
    _require_axes(probabilities, "probabilities", ("samples", "classes"))
    _require_labels(labels, probabilities, "probabilities")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= probabilities.shape[1]:
        expected = f"0 to {probabilities.shape[1] - 1}, one for each column of probabilities"
        message = f"labels range from {low} to {high}, expected {expected}"
        raise ValueError(message)
    wrong = (probabilities.sum(1) - 1).abs() > 1e-3
    if bool(wrong.any()) or not bool((probabilities >= 0).all()):
        message = (
            "probabilities hold negative or NaN values, or rows that do not sum to 1, expected "
            "probabilities; for logits use logits.softmax(-1)"
        )
        raise ValueError(message)
    return probabilities.gather(1, labels.long()[:, None])[:, 0]


def _require_axes(values: Tensor, name: str, axes: tuple[str, str]) -> None:
    if values.ndim != 2 or not values.numel():
        message = f"{name} has shape {tuple(values.shape)}, expected ({axes[0]}, {axes[1]})"
        raise ValueError(message)


def _require_labels(labels: Tensor, rows: Tensor, name: str) -> None:
    if labels.shape != rows.shape[:1] or labels.is_floating_point():
        message = (
            f"labels have shape {tuple(labels.shape)} and dtype {labels.dtype}, expected "
            f"({len(rows)},) integers, one for each row of {name}"
        )
        raise ValueError(message)


def _require_finite(values: Tensor, name: str, hint: str) -> Tensor:
    bad = ~torch.isfinite(values)
    if bool(bad.any()):
        first = tuple(bad.nonzero()[0].tolist())
        message = (
            f"the {name} hold {float(values[bad][0])} at {first} ({int(bad.sum())} such), expected "
            f"finite numbers; {hint}"
        )
        raise ValueError(message)
    return values
