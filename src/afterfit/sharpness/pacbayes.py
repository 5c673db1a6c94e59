"""PAC-Bayes certificates of trained networks: the error on new data of a stochastic linearized one.

The coordinates of the problem decide which: on ``connectivity(problem)`` it is the bound of the
connectivity tangent kernel, which a rescaling cannot change; on the problem itself that of the
tangent kernel, which a rescaling can make as small as one likes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor
from torch.nn import functional
from torch.utils._pytree import tree_leaves

from afterfit.curvature import ggn, jacobian_root, ntk
from afterfit.linalg.krylov import RitzPairs
from afterfit.linalg.spectrum import spectrum
from afterfit.problem.data import Batches
from afterfit.problem.likelihood import Gaussian
from afterfit.problem.persample import GIBIBYTE, outputs, unflatten
from afterfit.problem.problem import Problem
from afterfit.problem.transform import linearize
from afterfit.sharpness.certificate import (
    Certificate,
    Divergence,
    Scales,
    bias_term,
    risk_of_draws,
    seeger,
    sharpness_term,
)

Center = Callable[[Float[Tensor, "N C"], Int[Tensor, " N"]], Float[Tensor, "N C"]]
"""Residuals, targets minus outputs, that the posterior mean is fitted to."""

Form = Callable[[float, float, int, float], float]
"""Bound from risk, divergence, number of samples and delta: ``seeger`` or ``mcallester``."""

_SHARE_OF_DRAWS = 0.1
"""Part of delta that pays for evaluating the Gibbs risk by draws."""


def zero_mean(found: Float[Tensor, "N C"], classes: Int[Tensor, " N"]) -> Float[Tensor, "N C"]:  # noqa: ARG001
    """The posterior stays centered at the trained network, as Laplace approximations are."""
    return torch.zeros_like(found)


def ridge_mean(found: Float[Tensor, "N C"], classes: Int[Tensor, " N"]) -> Float[Tensor, "N C"]:
    """The posterior mean is fitted to one-hot targets, for networks trained with squared loss.

    For networks trained with cross-entropy the residuals are those of logits and large, and so is
    the bias.
    """
    return functional.one_hot(classes, found.shape[1]).to(found) - found


@final
@dataclass(frozen=True)
class KernelBasis:
    """Spectrum of the kernel of the bound's data.

    Attributes
    ----------
    eigenvalues
        Of ``J Jᵀ``, those above rounding.
    vectors
        Orthonormal columns (N C, R).
    way
        ``"dual"`` where the kernel was decomposed, ``"primal"`` where ``JᵀJ`` was: the smaller.
    """

    eigenvalues: Float[Tensor, " R"]
    vectors: Float[Tensor, "M R"]
    way: str


def kernel_basis(problem: Problem, data: Batches) -> KernelBasis:
    """Decompose the tangent kernel in float64, as ``J Jᵀ`` or as ``JᵀJ``, whichever is smaller."""
    root = jacobian_root(problem, data)
    rows, columns = root.shape
    if 8 * rows * columns > 4 * GIBIBYTE:
        values, vectors = torch.linalg.eigh(ntk(problem, data).matrix.double())
        return _positive(values, vectors, "dual")
    held = root.held()
    if rows <= columns:
        values, vectors = torch.linalg.eigh(held.gram())
        return _positive(values, vectors, "dual")
    values, vectors = torch.linalg.eigh(held.square())
    kept = values > _tiny(values)
    return KernelBasis(values[kept], held.matrix @ vectors[:, kept] / values[kept].sqrt(), "primal")


def _positive(values: Tensor, vectors: Tensor, way: str) -> KernelBasis:
    kept = values > _tiny(values)
    return KernelBasis(values[kept], vectors[:, kept], way)


def _tiny(values: Tensor) -> float:
    return float(values.max()) * len(values) * torch.finfo(values.dtype).eps


def pac_bayes_bound(
    problem: Problem,
    train: Batches,
    held_out: Batches,
    scales: Sequence[Scales],
    generator: Generator,
    *,
    delta: float = 0.05,
    center: Center = zero_mean,
    form: Form = seeger,
    num_draws: int = 100,
) -> Certificate:
    """Bound the error of the linearized Gibbs classifier, with the exact posterior.

    The prior is ``N(0, α² I)`` around the trained parameters, in the coordinates of the problem;
    the posterior is that of Bayesian linear regression on the held-out data. The bound is for
    predictions of parameters drawn from it, not for the trained network itself.

    Parameters
    ----------
    train
        All data that the trained parameters, or the choice of anything else here, depend on.
    held_out
        The data S_Q of the bound. Memory and time grow with ``(N C)²`` or ``P²``, the smaller, and
        with ``N C P`` for the Jacobian.
    scales
        A grid that was fixed before looking; delta is shared among its members.
    center
        :func:`zero_mean` or :func:`ridge_mean`.
    form
        :func:`~afterfit.sharpness.certificate.seeger` or ``mcallester``.
    num_draws
        Draws of the outputs of each sample, for the Gibbs risk.

    Raises
    ------
    ValueError
        If a held-out input occurs in the training data: the prior has seen it, and the statement
        would be void.

    References
    ----------
    Kim, Park, Kim and Yang (2023), Scale-invariant Bayesian neural networks with connectivity
    tangent kernel, ICLR, section 3. Dziugaite, Hsu, Gharbieh, Arpino and Roy (2021), On the role of
    data in PAC-Bayes bounds, AISTATS (a prior from other data).
    """
    _require_grid(scales)
    require_unseen(train, held_out)
    basis = kernel_basis(problem, held_out)
    found = outputs(problem, held_out).double()
    classes = class_indices(held_out.targets().to(found.device), found.shape[1])
    residual = center(found, classes)
    projections = basis.vectors.mT @ residual.flatten()
    parts = []
    for scale in scales:
        divergence = Divergence(
            bias_term(basis.eigenvalues, projections, scale),
            sharpness_term(basis.eigenvalues, scale),
        )
        errors = gibbs_errors(basis, residual, found, classes, scale, num_draws, generator)
        parts.append(_Part(scale, divergence, errors, num_draws * len(found)))
    return _least(parts, held_out.num_samples, delta, form)


def low_rank_pac_bayes_bound(
    problem: Problem,
    train: Batches,
    held_out: Batches,
    scales: Sequence[Scales],
    generator: Generator,
    *,
    delta: float = 0.05,
    form: Form = seeger,
    num_directions: int = 20,
    num_draws: int = 100,
) -> Certificate:
    """Bound the error of a low-rank posterior: for networks of any size, by products alone.

    The posterior is narrower than the prior only along a few Ritz vectors V of ``JᵀJ``,
    ``N(0, α² (I - V diag(γ μ / (1 + γ μ)) Vᵀ))``. The bound holds for every posterior, and of this
    one the divergence ``½ Σ h(1 / (1 + γ μ))`` is exact, whether V has converged or not.

    Parameters and errors are those of :func:`pac_bayes_bound`. Each draw is one vector of
    parameters, evaluated on all held-out samples by one forward-mode product.
    """
    _require_grid(scales)
    require_unseen(train, held_out)
    squared = replace(problem, likelihood=Gaussian(1.0))
    pairs = spectrum(ggn(squared, held_out), num_directions, generator, tolerance=1e-3)
    found = outputs(problem, held_out)
    classes = class_indices(held_out.targets().to(found.device), found.shape[1])
    linear = linearize(problem)
    parts = []
    for scale in scales:
        wrong = 0.0
        for _ in range(num_draws):
            there = _low_rank_draw(problem, pairs, scale, generator)
            logits = outputs(linear, held_out, there)
            wrong += float((logits.argmax(1) != classes).double().mean())
        divergence = Divergence(0.0, sharpness_term(pairs.values, scale))
        parts.append(_Part(scale, divergence, wrong / num_draws, num_draws))
    return _least(parts, held_out.num_samples, delta, form)


@final
@dataclass(frozen=True)
class _Part:
    """What is known of one posterior before delta is spent."""

    scales: Scales
    divergence: Divergence
    errors: float
    num_draws: int


def _least(parts: Sequence[_Part], num_samples: int, delta: float, form: Form) -> Certificate:
    """Share delta among the posteriors, and keep the tightest certificate."""
    each = delta / len(parts)
    certificates = []
    for part in parts:
        risk = risk_of_draws(part.errors, part.num_draws, _SHARE_OF_DRAWS * each)
        spent = (1 - _SHARE_OF_DRAWS) * each
        bound = form(risk, part.divergence.total, num_samples, spent)
        certificates.append(
            Certificate(
                bound=bound,
                risk=risk,
                observed_risk=part.errors,
                divergence=part.divergence,
                scales=part.scales,
                num_scales=len(parts),
                delta=delta,
                num_samples=num_samples,
                form=getattr(form, "__name__", str(form)),
            )
        )
    return min(certificates, key=lambda certificate: certificate.bound)


def gibbs_errors(
    basis: KernelBasis,
    residual: Float[Tensor, "N C"],
    found: Float[Tensor, "N C"],
    classes: Int[Tensor, " N"],
    scales: Scales,
    num_draws: int,
    generator: Generator,
) -> float:
    """Share of wrong predictions among draws of each sample's outputs from the posterior."""
    prior, noise = scales.prior**2, scales.noise**2
    kept = prior * basis.eigenvalues / (prior * basis.eigenvalues + noise)
    projections = basis.vectors.mT @ residual.flatten()
    mean = found + (basis.vectors @ (kept * projections)).view_as(found)
    roots = (basis.vectors * (noise * kept).sqrt()).view(*found.shape, -1)
    values, vectors = torch.linalg.eigh(roots @ roots.mT)
    spread = vectors * values.clamp_min(0).sqrt()[:, None, :]
    wrong = 0.0
    for _ in range(num_draws):
        draw = torch.randn(
            found.shape, dtype=found.dtype, generator=generator, device=generator.device
        )
        logits = mean + (spread @ draw.to(found.device)[..., None])[..., 0]
        wrong += float((logits.argmax(1) != classes).double().mean())
    return wrong / num_draws


def _low_rank_draw(
    problem: Problem, pairs: RitzPairs, scales: Scales, generator: Generator
) -> dict[str, Tensor]:
    draw = torch.randn(
        problem.num_params, dtype=torch.float64, generator=generator, device=generator.device
    ).to(problem.device, problem.dtype)
    shrink = 1 - (1 + scales.ratio * pairs.values.clamp_min(0)).rsqrt()
    along = shrink.to(draw) * (pairs.vectors.mT @ draw)
    step = unflatten(scales.prior * (draw - pairs.vectors @ along), problem.params)
    return {name: value + step[name] for name, value in problem.params.items()}


# What the prior has seen --------------------------------------------------------------------------


def require_unseen(train: Batches, held_out: Batches) -> None:
    """Refuse data of a bound that the prior was made from.

    Inputs are compared entry by entry (by hashes), so that it does not matter by what names or from
    which files the samples came. An augmented copy of a training sample is not recognized.

    Raises
    ------
    ValueError
        If an input of `held_out` occurs in `train`.
    """
    seen = set(_fingerprints(train))
    known = [i for i, digest in enumerate(_fingerprints(held_out)) if digest in seen]
    if known:
        names = [held_out.ids[i] for i in known[:3]]
        message = (
            f"{len(known)} of {held_out.num_samples} samples of the bound occur in the training "
            f"data (ids {names} …): the prior has seen them, and a bound on them would be void. "
            "Train on one part of the data and pass the other part"
        )
        raise ValueError(message)


def _fingerprints(data: Batches) -> list[bytes]:
    """Hash of the inputs of every sample."""
    digests = []
    for batch in data:
        leaves = [leaf.detach().cpu() for leaf in tree_leaves(batch.inputs)]
        for row in range(len(batch.index)):
            digest = blake2b(digest_size=16)
            for leaf in leaves:
                digest.update(leaf[row].contiguous().numpy().tobytes())
            digests.append(digest.digest())
    return digests


def class_indices(targets: Tensor, num_classes: int) -> Int[Tensor, " N"]:
    """Classes from class indices, or from one-hot rows as squared loss takes them.

    Raises
    ------
    ValueError
        If the targets are neither.
    """
    if targets.ndim == 2 and targets.shape[1] == num_classes > 1:
        return targets.argmax(1)
    if targets.ndim == 1 and bool((targets == targets.round()).all()):
        return targets.long()
    message = (
        f"targets of shape {tuple(targets.shape)} for {num_classes} outputs, expected class "
        "indices (N,) or one-hot rows (N, C): the bound is one of classification errors"
    )
    raise ValueError(message)


def _require_grid(scales: Sequence[Scales]) -> None:
    if not scales:
        message = "no scales were given, expected at least one: [Scales(prior=0.01, noise=0.1)]"
        raise ValueError(message)
