"""A scale for coordinates from the most balanced of all networks with the same function."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from afterfit.sharpness.architecture import Architecture
from afterfit.sharpness.symmetry import Part

_SCALINGS = ("node", "normalization", "affine", "query-key", "layer")
_LONGEST_STEP, _MAX_STEPS, _BALANCE = 2.0, 200, 1e-12


def canonical_scale(architecture: Architecture) -> dict[str, Tensor]:
    """Scale of each parameter in the orbit of rescalings of a network, for ``connectivity``.

    Among the scales ``s = exp(-E τ)``, with the exponents E of the rescalings that keep the
    function, it is the one under which the weights that are not zero are most probable,
    ``θ ~ N(0, diag(s²))``: the minimum of ``½ Σ_i (θ_i / s_i)² + Σ_i log s_i``, convex in τ. So
    ``θ / s`` is the network of the same function whose units are balanced: for each unit (or
    tensor) that can be rescaled, the sum of ``e_i ((θ_i / s_i)² - 1)`` is zero. A prior
    ``N(0, α² diag(s²))`` is the Euclidean one of the balanced network, carried back. Since s is
    rescaled with the parameters, all that is computed in ``connectivity(problem, s)`` ignores the
    rescalings that were found. Unlike ``|θ|`` it lets a single weight of zero move. Signs are those
    of the parameters, so that turning odd units around changes nothing either.

    This follows the idea of canonical points on the orbits of ReLU networks with our own definition
    of the point; other ones balance norms alone, which has no minimum before a normalization.

    Returns
    -------
    dict
        By the names and with the shapes of the parameters.

    Raises
    ------
    ValueError
        If no rescaling of the network is known, or the balance was not found.

    References
    ----------
    Stock, Graham, Gribonval, Jégou (2019), "Equi-normalization of neural networks", ICLR,
    arXiv:1902.10416 (the minimum of norms over an orbit).
    """
    network = architecture.network
    params = dict(network.named_parameters())
    weights = torch.cat([value.detach().flatten() for value in params.values()]).double()
    exponents = _exponents(architecture)
    log_scale = -exponents.apply(_balanced(weights, exponents))
    signs = torch.where(weights < 0, -1.0, 1.0).to(weights)
    parts = (signs * log_scale.exp()).split([value.numel() for value in params.values()])
    return {
        name: part.view_as(value) for (name, value), part in zip(params.items(), parts, strict=True)
    }


@final
@dataclass(frozen=True)
class Exponents:
    """Matrix E (P, T) of the exponents of P parameters in T free factors, by its entries."""

    rows: Int[Tensor, " n"]
    columns: Int[Tensor, " n"]
    values: Float[Tensor, " n"]
    shape: tuple[int, int]

    def apply(self, factors: Float[Tensor, " T"]) -> Float[Tensor, " P"]:
        """``E τ``."""
        total = factors.new_zeros(self.shape[0])
        return total.index_add(0, self.rows, self.values * factors[self.columns])

    def pull(self, parameters: Float[Tensor, " P"]) -> Float[Tensor, " T"]:
        """``Eᵀ g``."""
        total = parameters.new_zeros(self.shape[1])
        return total.index_add(0, self.columns, self.values * parameters[self.rows])

    def gram(self, weights: Float[Tensor, " P"]) -> Float[Tensor, "T T"]:
        """``Eᵀ diag(weights) E``, from pairs of entries in one row."""
        order = self.rows.argsort()
        rows, columns, values = self.rows[order], self.columns[order], self.values[order]
        total = weights.new_zeros(self.shape[1], self.shape[1])
        for shift in range(int(torch.bincount(rows).max())):
            paired = rows[shift:] == rows[: len(rows) - shift]
            left, right = columns[: len(rows) - shift][paired], columns[shift:][paired]
            product = values[: len(rows) - shift][paired] * values[shift:][paired]
            product = product * weights[rows[shift:][paired]]
            total.index_put_((left, right), product, accumulate=True)
            if shift:
                total.index_put_((right, left), product, accumulate=True)
        return total


def _exponents(architecture: Architecture) -> Exponents:
    params = dict(architecture.network.named_parameters())
    sizes = [value.numel() for value in params.values()]
    places = {
        name: part.view(value.shape)
        for (name, value), part in zip(
            params.items(), torch.arange(sum(sizes)).split(sizes), strict=True
        )
    }
    rows, columns, values, num = [], [], [], 0
    for freedom in architecture.freedoms:
        if freedom.kind not in _SCALINGS:
            continue
        together = freedom.kind == "layer"
        for part in freedom.symmetry.parts:
            if part.name not in places:  # statistics have no prior
                continue
            where, units = _owned(places[part.name], part, freedom.symmetry.size)
            rows.append(where)
            columns.append(num + (torch.zeros_like(units) if together else units))
            values.append(torch.full(where.shape, part.exponent, dtype=torch.float64))
        num += 1 if together else freedom.symmetry.size
    if not num:
        message = (
            f"no rescaling of the network was found, only {architecture.kinds}: it has no "
            "canonical scale; use connectivity(problem) without one"
        )
        raise ValueError(message)
    return Exponents(torch.cat(rows), torch.cat(columns), torch.cat(values), (sum(sizes), num))


def _owned(
    places: Int[Tensor, "..."], part: Part, size: int
) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
    """Positions in the flat vector that belong to units, and to which."""
    if part.axis is None:
        return places.flatten(), torch.zeros(places.numel(), dtype=torch.long)
    there = part.entries(size)
    view = places.narrow(part.axis, there.start, there.stop - there.start)
    shape = [1] * view.ndim
    shape[part.axis] = -1
    units = torch.arange(size).repeat_interleave(part.repeat).view(shape).expand_as(view)
    return view.flatten(), units.flatten()


def _balanced(weights: Float[Tensor, " P"], exponents: Exponents) -> Float[Tensor, " T"]:
    """Minimum over τ of ``½ Σ θ_i² exp(2 (E τ)_i) - Σ_i (E τ)_i`` over weights that are not zero.

    By Newton's method with steps of bounded length, each halved until the function falls. Factors
    that are combinations of others leave the minimum as it is.
    """
    there = (weights != 0).double()
    tau = weights.new_zeros(exponents.shape[1])

    def value(at: Tensor) -> float:
        moved = exponents.apply(at)
        return float((0.5 * weights.square() * (2 * moved).exp() - there * moved).sum())

    goal, off = _BALANCE * len(weights) ** 0.5, float("inf")
    for _ in range(_MAX_STEPS):
        sizes = weights.square() * (2 * exponents.apply(tau)).exp()
        gradient = exponents.pull(sizes - there)
        off = float(gradient.abs().max())
        if off <= goal:
            return tau
        hessian = exponents.gram(2 * sizes)
        step = -torch.linalg.lstsq(hessian, gradient[:, None], driver="gelsd").solution[:, 0]
        step *= min(1.0, _LONGEST_STEP / float(step.abs().max()))
        before, length = value(tau), 1.0
        while value(tau + length * step) > before + 1e-14 * abs(before) and length > 1e-6:
            length *= 0.5
        tau = tau + length * step
    message = (
        f"the balance is off by {off:.2g} after {_MAX_STEPS} steps, expected {goal:.2g}; use "
        "connectivity(problem) without a scale"
    )
    raise ValueError(message)
