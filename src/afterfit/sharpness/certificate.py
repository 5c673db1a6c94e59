"""PAC-Bayes bounds of linearized networks in closed form: pure functions of a spectrum.

Notation: prior ``N(0, α² I)`` in the coordinates of the problem, posterior
``N(μ, α² (I + γ G)⁻¹)`` with ``G = JᵀJ`` summed over the data of the bound and ``γ = α² / σ²``. The
eigenvalues are those of ``G``, or of the kernel ``J Jᵀ``, which has the same ones apart from zeros;
zeros count nothing. On ``connectivity(problem)`` they are those of the connectivity tangent kernel,
and nothing here changes when the network is rescaled.

References
----------
Kim, Park, Kim and Yang (2023), Scale-invariant Bayesian neural networks with connectivity tangent
kernel, ICLR. arXiv:2209.15208
"""

import math
from dataclasses import dataclass
from typing import cast, final

import torch
from jaxtyping import Float
from scipy.optimize import brentq
from torch import Tensor

KAPPA = 0.21621660  # rounded up
"""Largest ``h(1 / (1 + x)) / x``, reached at x = 2.16258: the trace bounds the sharpness by it."""


@final
@dataclass(frozen=True)
class Scales:
    """Standard deviations of prior and observations, fixed before the data of the bound is seen.

    Attributes
    ----------
    prior
        α, in the coordinates of the problem; relative to each weight for a connectivity problem.
    noise
        σ, in the units of the outputs.
    """

    prior: float | int
    noise: float | int

    def __post_init__(self) -> None:
        for name, value in (("prior", self.prior), ("noise", self.noise)):
            if not 0 < value < math.inf:
                message = f"the {name} scale is {value}, expected a standard deviation above 0"
                raise ValueError(message)

    @property
    def ratio(self) -> float:
        """γ = α² / σ²."""
        return (self.prior / self.noise) ** 2


@final
@dataclass(frozen=True)
class Divergence:
    """Kullback-Leibler divergence of the posterior from the prior, in nats, by its two causes.

    Attributes
    ----------
    bias
        ``μᵀμ / α²``: the posterior mean left the prior's.
    sharpness
        ``Σ h(β_i)``: the posterior is narrower than the prior.
    """

    bias: float
    sharpness: float

    @property
    def total(self) -> float:
        """KL = ½ (bias + sharpness)."""
        return 0.5 * (self.bias + self.sharpness)


# The divergence -------------------------------------------------------------------------------


def narrowing(scaled: Float[Tensor, " R"]) -> Float[Tensor, " R"]:
    """``h(β) = β - log β - 1`` at ``β = 1 / (1 + x)``, for each ``x = γ λ ≥ 0``.

    Twice the divergence, in nats, of a Gaussian of variance β from one of variance 1.
    """
    return torch.log1p(scaled) - scaled / (1 + scaled)


def sharpness_term(eigenvalues: Float[Tensor, " R"], scales: Scales) -> float:
    """``Σ h(β_i) = log det(I + γ C) - d_eff``, exact for exact eigenvalues.

    Eigenvalues that rounding made negative count as zeros.
    """
    return float(narrowing(_scaled(eigenvalues, scales)).sum())


def effective_dimension(eigenvalues: Float[Tensor, " R"], scales: Scales) -> float:
    """``tr[γ C (I + γ C)⁻¹]``: how many directions the data of the bound determines."""
    x = _scaled(eigenvalues, scales)
    return float((x / (1 + x)).sum())


def bias_term(
    eigenvalues: Float[Tensor, " R"], projections: Float[Tensor, " R"], scales: Scales
) -> float:
    """``μᵀμ / α² = Σ α² λ_i r̃_i² / (α² λ_i + σ²)²`` of the ridge posterior.

    Parameters
    ----------
    projections
        The residuals (targets minus outputs) in the eigenbasis of the kernel, ``r̃ = Uᵀ r``.
    """
    prior, noise = scales.prior**2, scales.noise**2
    values = eigenvalues.double().clamp_min(0)
    weights = prior * values / (prior * values + noise).square()
    return float(weights @ projections.double().square())


def trace_bound(trace: float | int, scales: Scales) -> float:
    """Upper bound ``κ γ tr C`` of the sharpness term: why the trace controls the bound."""
    return KAPPA * scales.ratio * _required_trace(trace)


def certified_sharpness(
    ritz_values: Float[Tensor, " K"], trace: float | int, scales: Scales
) -> float:
    """Upper bound of the sharpness term from a few Ritz values and the exact trace.

    A sum over Ritz values alone is a *lower* estimate, so that the "bound" built on it is none.
    Ritz values lie below the eigenvalues that they stand for; what they miss of the trace either
    lifts those, each by a slope of at most ``h'``, or belongs to further eigenvalues, each of which
    counts at most κ times its size. Hence, for Ritz values converged or not,
    ``Σ h ≤ Σ_k h(γ μ_k) + max(κ, h'(max(1, γ μ_K))) γ (tr C - Σ_k μ_k)``
    with ``h'(x) = x / (1 + x)²`` and μ_K the least Ritz value.

    Parameters
    ----------
    ritz_values
        Of the positive semidefinite ``G``; from :func:`afterfit.linalg.krylov.lanczos`.
    trace
        Exact trace of ``G``.

    Raises
    ------
    ValueError
        If the Ritz values sum to more than the trace.
    """
    whole = _required_trace(trace)
    if not len(ritz_values):
        return trace_bound(trace, scales)
    x = _scaled(ritz_values, scales)
    rest = scales.ratio * whole - float(x.sum())
    if rest < -1e-6 * scales.ratio * whole:
        message = (
            f"the Ritz values sum to {float(ritz_values.sum()):.6g}, more than the trace "
            f"{float(trace):.6g}; both must be of the same matrix, summed over the same samples"
        )
        raise ValueError(message)
    least = max(1.0, float(x.min()))
    slope = max(KAPPA, least / (1 + least) ** 2)
    return min(float(narrowing(x).sum()) + slope * max(rest, 0.0), trace_bound(trace, scales))


def _scaled(eigenvalues: Tensor, scales: Scales) -> Tensor:
    return scales.ratio * eigenvalues.detach().double().clamp_min(0)


def _required_trace(trace: float) -> float:
    if not 0 <= trace < math.inf:
        message = f"the trace is {trace}, expected a finite number of at least 0"
        raise ValueError(message)
    return float(trace)


# The bounds -----------------------------------------------------------------------------------


def complexity(divergence: float | int, num_samples: int, delta: float) -> float:
    """``(KL + log(2 √N / δ)) / N`` in nats, what every form below charges for the posterior.

    References
    ----------
    Maurer (2004), A note on the PAC Bayesian theorem, theorem 5. arXiv:cs/0411099
    """
    _require_share("delta", delta)
    if num_samples < 8:
        message = (
            f"num_samples is {num_samples}, expected at least 8, for which the bound is proved"
        )
        raise ValueError(message)
    return (divergence + math.log(2 * math.sqrt(num_samples) / delta)) / num_samples


def mcallester(risk: float | int, divergence: float | int, num_samples: int, delta: float) -> float:
    """Bound ``risk + sqrt(complexity / 2)`` of the expected error of the Gibbs classifier.

    With probability at least ``1 - delta`` over the samples, none of which the prior has seen.

    References
    ----------
    McAllester (1999), PAC-Bayesian model averaging, COLT, with the constant of Maurer (2004).
    """
    return risk + math.sqrt(complexity(divergence, num_samples, delta) / 2)


def kl_inverse(risk: float | int, budget: float | int) -> float:
    """Largest p with ``kl(risk ‖ p) ≤ budget``, both Bernoulli, in nats; never below the risk.

    Examples
    --------
    >>> f"{kl_inverse(0.0, 0.1):.6f}"  # 1 - exp(-0.1)
    '0.095163'
    """
    if not 0 <= risk <= 1 or not budget >= 0:
        message = f"risk is {risk} and budget {budget}, expected a share and at least 0"
        raise ValueError(message)
    if risk == 1 or budget == 0:
        return float(risk)
    top = math.nextafter(1.0, 0.0)
    safe = budget + 1e-15  # above the rounding of kl itself, and the root above its own below
    if binary_kl(risk, top) <= safe:
        return 1.0
    root = brentq(lambda p: binary_kl(risk, p) - safe, max(risk, 5e-324), top, xtol=1e-15)
    return min(1.0, cast(float, root) + 1e-14)


def binary_kl(q: float | int, p: float | int) -> float:
    """``kl(q ‖ p)`` of Bernoulli distributions, in nats."""
    first = q * math.log(q / p) if q > 0 else 0.0
    return first + ((1 - q) * math.log((1 - q) / (1 - p)) if q < 1 else 0.0)


def seeger(risk: float | int, divergence: float | int, num_samples: int, delta: float) -> float:
    """Bound ``kl⁻¹(risk | complexity)``, never looser than :func:`mcallester`.

    References
    ----------
    Seeger (2002), PAC-Bayesian generalisation error bounds for Gaussian process classification,
    JMLR 3; Maurer (2004).
    """
    return kl_inverse(min(risk, 1.0), complexity(divergence, num_samples, delta))


def risk_of_draws(errors: float | int, num_draws: int, delta: float) -> float:
    """Upper bound of a Gibbs risk of which only draws were evaluated, ``kl⁻¹(ê | log(2/δ') / m)``.

    Parameters
    ----------
    errors
        Share of errors among the draws.
    num_draws
        Number m of independent draws that were averaged; they need not have equal chances.

    References
    ----------
    Langford and Caruana (2001), (Not) bounding the true error, NIPS.
    """
    _require_share("delta", delta)
    return kl_inverse(errors, math.log(2 / delta) / num_draws)


def _require_share(name: str, value: float) -> None:
    if not 0 < value < 1:
        message = f"{name} is {value}, expected between 0 and 1: 0.05 for a bound that fails 5 %"
        raise ValueError(message)


# What comes out -------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class Certificate:
    """A bound of the error of a stochastic linearized network, with all that it was made of.

    It speaks of the *Gibbs* classifier, which draws new parameters for each prediction; not of the
    trained network itself.

    Attributes
    ----------
    bound
        With probability at least ``1 - delta`` the expected error is at most this.
    risk
        What the bound was given as error on its data: an upper bound of the Gibbs risk.
    observed_risk
        Share of errors among the draws.
    divergence
        KL of posterior and prior, in nats.
    scales
        Those of the least bound on the grid.
    num_scales
        How many scales shared ``delta``.
    delta
        Chance that the statement fails, draws and grid included.
    num_samples
        Samples of the bound, none of which the prior saw.
    form
        Name of the inequality.
    """

    bound: float
    risk: float
    observed_risk: float
    divergence: Divergence
    scales: Scales
    num_scales: int
    delta: float
    num_samples: int
    form: str

    @property
    def is_vacuous(self) -> bool:
        """Whether the bound says nothing."""
        return self.bound >= 1

    def __str__(self) -> str:
        verdict = "vacuous" if self.is_vacuous else "not vacuous"
        scales = f"α = {self.scales.prior:g}, σ = {self.scales.noise:g}"
        return (
            f"error ≤ {self.bound:.4f} ({verdict}) with probability {1 - self.delta:g} "
            f"[{self.form}, N = {self.num_samples}; Gibbs risk ≤ {self.risk:.4f}; KL "
            f"{self.divergence.total:.4g} nats = ½ (bias {self.divergence.bias:.4g} + sharpness "
            f"{self.divergence.sharpness:.4g}); {scales}]"
        )
