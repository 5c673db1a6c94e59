import pytest
import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.testing import assert_close

from afterfit.curvature import FactoredPart
from afterfit.posterior.kronecker import LayerPart

NUM, WIDTH, HEIGHT, SCALES = 3, 7, 5, 2


def drawn(*shape: int) -> Float[Tensor, "..."]:
    return torch.randn(
        *shape, generator=Generator().manual_seed(len(shape)), dtype=torch.float64
    ).abs()


def orthogonal(size: int) -> Float[Tensor, "n n"]:
    return torch.linalg.qr(drawn(size, size) - 1)[0]


def dense(
    layer: LayerPart, found: FactoredPart, weights: Float[Tensor, "A n"]
) -> Float[Tensor, "A B C C"]:
    """Gradients of each sample and output, rotated, squared and summed: a loop for each sum."""
    result = torch.zeros(len(weights), *found.outputs.shape[:2], found.outputs.shape[1]).double()
    basis = torch.kron(layer.output_vectors, layer.input_vectors)
    for b, (a, of_outputs) in enumerate(zip(found.inputs, found.outputs, strict=True)):
        rows = []
        for g in of_outputs:
            pairs = zip(g * layer.rows, a * layer.columns, strict=True)
            gradient = torch.stack([torch.outer(*pair) for pair in pairs]).sum(0)
            rows.append(basis.mT @ gradient.flatten())
        for k, weight in enumerate(weights):
            result[k, b] = torch.stack(rows) @ weight.diag() @ torch.stack(rows).mT
    return result


@pytest.mark.parametrize("memory_budget", [1, 2**30])
@pytest.mark.parametrize("num_outputs", [1, 4])
@pytest.mark.parametrize("positions", [1, 2, 4, 13])  # by pairs of positions, then by rows
def test_covariances_are_those_of_gradients_that_are_formed(
    positions: int, num_outputs: int, memory_budget: int
):
    names = ("weight",)
    layer = LayerPart(names, orthogonal(HEIGHT), orthogonal(WIDTH), drawn(HEIGHT), drawn(WIDTH))
    found = FactoredPart(
        names,
        torch.arange(HEIGHT * WIDTH),
        drawn(NUM, positions, WIDTH) - 0.5,
        drawn(NUM, num_outputs, positions, HEIGHT) - 0.5,
        torch.ones(HEIGHT, WIDTH).double(),
    )
    weights = drawn(SCALES, HEIGHT * WIDTH)
    result = layer.covariances(found, torch.ones(HEIGHT * WIDTH).double(), weights, memory_budget)
    assert_close(result, dense(layer, found, weights))
    assert_close(result, result.mT, rtol=0, atol=1e-13)
