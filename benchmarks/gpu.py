"""Seconds of the main calls on CUDA and on the processor, in one run.

    python benchmarks/gpu.py                 # a multilayer perceptron and a convolutional network
    python benchmarks/gpu.py --samples 4096

Wall time, the least of three repetitions after one that is not counted; float32, random weights and
data, seed 0. Without CUDA it says so and measures nothing.
"""

import argparse
import sys
import time
from collections.abc import Callable

import torch
from rows import NUM_CLASSES, conv_net, large_mlp
from torch import Generator

from afterfit.curvature import diagonal, estimate_squared_jacobian_trace, ggn, kfac
from afterfit.influence import GEX
from afterfit.posterior import laplace, predict
from afterfit.problem import Batches, Categorical, Problem, connectivity
from afterfit.sharpness import connectivity_sharpness

CALLS: dict[str, Callable[[Problem, Batches], object]] = {
    "connectivity trace, exact": connectivity_sharpness,
    "connectivity trace, 10 probes": lambda p, d: estimate_squared_jacobian_trace(
        connectivity(p), d, 10, Generator().manual_seed(0)
    ),
    "diagonal": diagonal,
    "kfac": kfac,
    "16 products with the ggn": lambda p, d: (
        ggn(p, d) @ torch.ones(p.num_params, 16, device=p.device)
    ),
    "kfac laplace and predictions": lambda p, d: predict(laplace(p, d, curvature=kfac), d),
    "gex, 4 members": lambda p, d: GEX(members=4, steps=20, learning_rate=0.05).fit(p, d),
}


def seconds(call: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(4):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=1024)
    num = parser.parse_args().samples
    if not torch.cuda.is_available():
        sys.exit("there is no CUDA device: nothing was measured")
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    print(f"{'network':10} {'call':32} {'processor s':>12} {'CUDA s':>10} {'GiB':>7}")
    for make in (large_mlp, conv_net):
        torch.manual_seed(0)
        module, shape = make()
        columns = torch.randn(num, *shape), torch.randint(NUM_CLASSES, (num,))
        for name, call in CALLS.items():
            found = []
            for device in (torch.device("cpu"), torch.device("cuda")):
                problem = Problem.from_module(module.to(device), Categorical())
                data = Batches(columns, 256)
                found.append(seconds(lambda p=problem, d=data, c=call: c(p, d), device))
            held = torch.cuda.max_memory_allocated() / 2**30
            torch.cuda.reset_peak_memory_stats()
            print(f"{make.__name__:10} {name:32} {found[0]:12.3f} {found[1]:10.3f} {held:7.2f}")


if __name__ == "__main__":
    main()
