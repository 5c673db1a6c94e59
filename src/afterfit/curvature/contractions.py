"""Products of matrices, of any number of axes, as products at every position."""

from collections import Counter
from dataclasses import dataclass, replace
from math import prod
from string import ascii_letters, ascii_lowercase
from typing import Any, final

from torch import Tensor

from afterfit.curvature.layers import Multiply
from afterfit.curvature.places import Described, Find, Place, slot_of


@final
@dataclass(frozen=True)
class Positions:
    """All axes between the first and the last count positions: (B, …, n) to (B, S, 1, n)."""

    def __call__(self, tensor: Tensor) -> Tensor:
        return tensor.reshape(len(tensor), -1, 1, tensor.shape[-1])


@final
@dataclass(frozen=True)
class Arranged:
    """Axes of a tensor (B, …) by what they are for: (B, positions, groups, entries).

    Attributes
    ----------
    positions, groups, entries
        The axes of each kind, numbered without that of the samples; all others are summed over.
    """

    positions: tuple[int, ...]
    groups: tuple[int, ...]
    entries: tuple[int, ...]

    def __call__(self, tensor: Tensor) -> Tensor:
        kept = [axis + 1 for axis in (*self.positions, *self.groups, *self.entries)]
        gone = [axis for axis in range(1, tensor.ndim) if axis not in kept]
        ordered = tensor.permute(0, *kept, *gone)
        for _ in gone:
            ordered = ordered.sum(-1)
        num, kinds = len(self.positions), len(self.groups)
        size = ordered.shape[1:]
        groups, entries = prod(size[num : num + kinds]), prod(size[num + kinds :])
        return ordered.reshape(len(tensor), -1, groups, entries)


def contraction(
    found: Place, weight: str, other: Tensor, letters: str, result: str
) -> Described | None:
    """Rule for a sum over products of a weight and something else, with a letter for each axis.

    An axis that is in the weight, the other and the result counts groups; in all but the weight,
    positions; in all but the other, outputs; in all but the result, inputs.
    """
    axes = [set(weight), set(letters), set(result)]
    if any(
        len(one) != len(text) for one, text in zip(axes, (weight, letters, result), strict=True)
    ):
        return None  # a diagonal
    if any(letter not in letters and letter not in result for letter in weight):
        return None  # the weight alone is summed over
    sizes = dict(zip(weight, found.twin.shape, strict=True))
    if any(sizes.get(a, n) != n for a, n in zip(letters, other.shape, strict=True)):
        return None  # an axis of length one is repeated
    groups = [a for a in weight if a in letters and a in result]
    out = [a for a in weight if a not in letters]
    into = [a for a in weight if a not in result]
    positions = [a for a in result if a not in weight]
    order = [weight.index(a) for a in (*groups, *out, *into)]
    shape = (
        prod(sizes[a] for a in groups),
        prod(sizes[a] for a in out),
        prod(sizes[a] for a in into),
    )

    def arranged(text: str, entries: list[str]) -> Arranged:
        kinds = (tuple(text.index(a) for a in kind) for kind in (positions, groups, entries))
        return Arranged(*kinds)

    call = Multiply(
        slot_of(found, lambda w: w.permute(order), shape),
        None,
        arranged(letters, into),
        arranged(result, out),
    )
    return call, other


def einsum(find: Find, equation: Any, *operands: Any) -> Described | None:
    """``torch.einsum`` of two tensors, one of which is a weight."""
    if len(operands) == 1 and isinstance(operands[0], (tuple, list)):
        operands = tuple(operands[0])
    if not isinstance(equation, str) or len(operands) != 2:
        return None
    terms, arrow, result = equation.replace(" ", "").partition("->")
    texts = terms.split(",")
    places = [find(operand) for operand in operands]
    if len(texts) != 2 or (places[0] is None) == (places[1] is None):
        return None
    if not arrow:
        counts = Counter(terms.replace(",", "").replace(".", ""))
        result = "..." * ("..." in terms) + "".join(sorted(a for a, n in counts.items() if n == 1))
    if "..." in terms:
        spare = [a for a in ascii_letters if a not in equation]
        lengths = [x.ndim - len(t.replace("...", "")) for t, x in zip(texts, operands, strict=True)]
        num = max(n for n, t in zip(lengths, texts, strict=True) if "..." in t)
        filled = ["".join(spare[num - n : num]) for n in lengths]
        texts = [t.replace("...", f) for t, f in zip(texts, filled, strict=True)]
        result = result.replace("...", "".join(spare[:num]))
    at = 0 if places[0] is not None else 1
    found = places[at]
    assert found is not None
    return contraction(found, texts[at], operands[1 - at], texts[1 - at], result)


def matmul(find: Find, input: Tensor, other: Tensor) -> Described | None:  # noqa: A002
    """``input @ weight`` or ``weight @ input``; axes before the last two are broadcast."""
    left, right = find(input), find(other)
    if (left is None) == (right is None):
        return None
    if right is not None and other.ndim == 2 and input.ndim > 1:
        call = Multiply(slot_of(right, lambda w: w.mT[None]), None, Positions(), Positions())
        return call, input
    before, after = ("" if x.ndim == 1 else f for x, f in ((input, "y"), (other, "z")))
    shapes = input.shape[:-2], other.shape[:-2]
    num = max(map(len, shapes))
    texts = [ascii_lowercase[num - len(shape) : num] for shape in shapes]
    ends = f"{before}x", f"x{after}"
    result = ascii_lowercase[:num] + before + after
    at = 0 if left is not None else 1
    found, rest = (left, other) if left is not None else (right, input)
    assert found is not None
    weight, letters = (texts[i] + ends[i] for i in (at, 1 - at))
    lengths = dict(zip(letters, rest.shape, strict=True))
    single = [
        i
        for i, (a, n) in enumerate(zip(weight, found.twin.shape, strict=True))
        if n == 1 and lengths.get(a, 1) > 1
    ]
    for i in reversed(single):
        found = replace(found, twin=found.twin.squeeze(i))
        weight = weight[:i] + weight[i + 1 :]
    repeated = {
        a for a, n in zip(weight, found.twin.shape, strict=True) if n > 1 and lengths.get(a) == 1
    }
    letters = "".join(a.upper() if a in repeated else a for a in letters)
    return contraction(found, weight, rest, letters, result)


def bilinear(
    find: Find,
    input1: Tensor,
    input2: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
) -> Described:
    """``functional.bilinear``: linear in the products of the entries of two inputs."""
    products = (input1[..., :, None] * input2[..., None, :]).flatten(-2)
    call = Multiply(
        slot_of(find(weight), lambda w: w[None], (1, weight.shape[0], weight[0].numel())),
        slot_of(find(bias), lambda b: b[None]),
        Positions(),
        Positions(),
    )
    return call, products
