"""The rescalings of the digits networks by name, as the experiments apply them."""

from afterfit.sharpness.symmetry import Part, Symmetry

BLOCKS = ((0, 1, 3), (3, 4, 6), (6, 7, 10))  # convolution, BatchNorm, what reads it


def before_norm(conv: int, norm: int, size: int) -> Symmetry:
    parts = (
        Part(f"{conv}.weight", 0),
        Part(f"{norm}.running_mean", 0),
        Part(f"{norm}.running_var", 0, exponent=2.0),
    )
    return Symmetry(size, parts)


def affine(norm: int, reader: int, size: int) -> Symmetry:
    parts = (
        Part(f"{norm}.weight", 0),
        Part(f"{norm}.bias", 0),
        Part(f"{reader}.weight", 1, exponent=-1.0),
    )
    return Symmetry(size, parts)
