"""E10: sharpness of pretrained CIFAR-10 ResNets, and what rescalings that keep the function do to it.

    python experiments/ctk/e10_checkpoint.py --data FOLDER

ResNet-20 and -32 as published, in float64 and eval mode, on 64 lossless training images. Every channel before a BatchNorm is
scaled together with the statistics of that BatchNorm, and inside a block the affine part of the first BatchNorm against what
reads it: all by 1/2, all by 4, each channel by its own factor (log-normal with spread log 4; uniform in the exponent between
1/1000 and 1000). Printed: largest change of an output, and the change of connectivity sharpness (exact), of the trace of the
tangent kernel (exact), and of the trace of the Fisher matrix, each as a ratio; then the means over images themselves and
the share of each stage. Claims: outputs within 1e-8 of the largest, connectivity sharpness within 1e-8 (relative),
the tangent trace not within 1 %.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from images import cifar, normalized, pretrained
from torch import Generator, Tensor, nn

from afterfit.problem import Batches, Categorical, Problem
from afterfit.sharpness import connectivity_sharpness, fisher_trace, tangent_trace
from afterfit.sharpness.rescaling import change_of_outputs, scale_units
from afterfit.sharpness.symmetry import Part, Symmetry

NUM_IMAGES = 64


def symmetries(network: nn.Module) -> Iterator[Symmetry]:
    """Channels before each BatchNorm with its statistics; the affine part of bn1 against conv2."""
    for name, part in network.named_modules():
        if not isinstance(part, nn.BatchNorm2d):
            continue
        conv = f"{name.rpartition('.')[0]}.conv{name[-1]}.weight".lstrip(".")
        statistics = (
            Part(f"{name}.running_mean", 0),
            Part(f"{name}.running_var", 0, exponent=2.0),
        )
        yield Symmetry(part.num_features, (Part(conv, 0), *statistics))
        if name.endswith(".bn1"):
            reader = Part(conv.replace("conv1", "conv2"), 1, exponent=-1.0)
            affine = (Part(f"{name}.weight", 0), Part(f"{name}.bias", 0), reader)
            yield Symmetry(part.num_features, affine)


def log_normal(size: int, generator: Generator) -> Tensor:
    return (math.log(4) * torch.randn(size, generator=generator).double()).exp()


def thousandfold(size: int, generator: Generator) -> Tensor:
    return 10 ** (6 * torch.rand(size, generator=generator).double() - 3)


FACTORS: dict[str, Callable[[int, Generator], Tensor]] = {
    "all x 1/2": lambda size, _: torch.full((size,), 0.5).double(),
    "all x 4": lambda size, _: torch.full((size,), 4.0).double(),
    "log-normal, log 4": log_normal,
    "1/1000 to 1000": thousandfold,
}


def rescaled(network: nn.Module, how: Callable[[int, Generator], Tensor]) -> nn.Module:
    generator = Generator().manual_seed(0)
    for symmetry in symmetries(network):
        network = scale_units(network, symmetry, how(symmetry.size, generator))
    return network


def measured(network: nn.Module, data: Batches) -> tuple[dict[str, float], dict[str, float]]:
    problem = Problem.from_module(network, Categorical())
    sharpness = connectivity_sharpness(problem, data)
    stages: dict[str, float] = {}
    for name, value in sharpness.by_parameter.items():
        stage = name.split(".")[0]
        stages[stage] = stages.get(stage, 0.0) + float(value) / sharpness.total
    return {
        "connectivity sharpness": sharpness.total / data.num_samples,
        "tangent trace": tangent_trace(problem, data).total / data.num_samples,
        "Fisher trace": fisher_trace(problem, data).total / data.num_samples,
    }, stages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with cifar10/ and more")
    parser.add_argument(
        "--results", type=Path, default=Path(__file__).parent / "results" / "e10.json"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    x, y = cifar(given.data, "train")
    images = normalized(x[:NUM_IMAGES]).double()
    data = Batches((images, y[:NUM_IMAGES]), 16)
    results: dict[str, dict[str, dict[str, float]]] = {}
    for depth in (20, 32):
        network = pretrained(given.data, depth).double()
        before, stages = measured(network, data)
        results[f"resnet{depth}"] = {"as published": before, "stages": stages}
        shown = ", ".join(f"{name} {value:.4g}" for name, value in before.items())
        print(f"ResNet-{depth}, means over {NUM_IMAGES} images: {shown}")
        print(
            "  shares of connectivity sharpness: "
            + ", ".join(f"{name} {share:.3f}" for name, share in stages.items()),
            flush=True,
        )
        for name, how in FACTORS.items():
            changed = rescaled(network, how)
            gap = change_of_outputs(network, changed, images)
            after, _ = measured(changed, data)
            ratios = {key: after[key] / before[key] for key in before}
            results[f"resnet{depth}"][name] = {"outputs": gap, **ratios}
            kept = abs(ratios["connectivity sharpness"] - 1)
            print(
                f"  {name:18} outputs {gap:.1e}, connectivity sharpness x (1 +- {kept:.1e}), "
                f"tangent trace x {ratios['tangent trace']:.4g}, Fisher trace x {ratios['Fisher trace']:.4g}",
                flush=True,
            )
            assert gap < 1e-8
            assert kept < 1e-8
            assert abs(ratios["tangent trace"] - 1) > 0.01
            given.results.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
