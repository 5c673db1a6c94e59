"""A table of small trained networks and their data, in float64: every law is tried on all of them.

Each row of :data:`NETWORKS` is crossed with each row of :data:`LIKELIHOODS`. To add a case, add a
row. The data has seven samples read three at a time, so that the last batch holds a single one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Generator, Tensor, nn

from afterfit.problem import (
    Batches,
    Bernoulli,
    Categorical,
    Gaussian,
    Likelihood,
    PerSample,
    Poisson,
    Problem,
)

NUM_SAMPLES, BATCH_SIZE = 7, 3


@final
@dataclass(frozen=True)
class Case:
    """A problem and its data under one name, ``network-likelihood``."""

    name: str
    problem: Problem
    data: Batches


@final
class Tied(nn.Module):
    """Two layers with one weight, and a head."""

    def __init__(self, num_outputs: int) -> None:
        nn.Module.__init__(self)
        self.encoder, self.decoder = nn.Linear(3, 3), nn.Linear(3, 3)
        self.decoder.weight = self.encoder.weight
        self.head = nn.Linear(3, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.decoder(self.encoder(x).tanh()).tanh())


@final
class Attention(nn.Module):
    """A transformer layer, then the mean over positions and a head."""

    def __init__(self, num_outputs: int) -> None:
        nn.Module.__init__(self)
        self.layer = nn.TransformerEncoderLayer(4, 2, 3, dropout=0.2, batch_first=True)
        self.head = nn.Linear(4, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x).mean(1))


@final
class TokenBag(nn.Module):
    """Mean of the embeddings of the tokens that are not padding (0), and a head."""

    def __init__(self, num_outputs: int) -> None:
        nn.Module.__init__(self)
        self.embedding = nn.Embedding(6, 3, padding_idx=0)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(3, num_outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        there = (tokens != 0).to(self.head.weight.dtype)[..., None]
        mean = (self.embedding(tokens) * there).sum(1) / there.sum(1)
        return self.head(self.dropout(mean).tanh())


@final
class Named(nn.Module):
    """Takes two inputs by their names, and returns a dict as the models of the hub do."""

    def __init__(self, num_outputs: int) -> None:
        nn.Module.__init__(self)
        self.body, self.head = nn.Linear(3, 4), nn.Linear(4, num_outputs)
        self.dropout = nn.Dropout(0.2)

    def forward(self, features: Tensor, scale: Tensor) -> dict[str, Tensor]:
        hidden = self.dropout(self.body(features).tanh()) * scale[:, None]
        return {"logits": self.head(hidden), "hidden": hidden}


def _linear(num_outputs: int) -> nn.Module:
    return nn.Linear(3, num_outputs)


def _mlp(num_outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, num_outputs))


def _cnn(num_outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout2d(0.5),
        nn.Flatten(),
        nn.Linear(12, num_outputs),
    )


def _batch_norm(num_outputs: int) -> nn.Module:
    norm = nn.BatchNorm1d(4)
    nn.init.normal_(norm.running_mean)  # pyright: ignore[reportArgumentType]
    nn.init.uniform_(norm.running_var, 0.5, 2.0)  # pyright: ignore[reportArgumentType]
    nn.init.uniform_(norm.weight, 0.5, 2.0)
    nn.init.normal_(norm.bias)
    return nn.Sequential(nn.Linear(3, 4), norm, nn.Tanh(), nn.Linear(4, num_outputs))


def _vectors(generator: Generator) -> Tensor:
    return torch.randn(NUM_SAMPLES, 3, dtype=torch.float64, generator=generator)


def _images(generator: Generator) -> Tensor:
    return torch.randn(NUM_SAMPLES, 2, 4, 4, dtype=torch.float64, generator=generator)


def _sequences(generator: Generator) -> Tensor:
    return torch.randn(NUM_SAMPLES, 3, 4, dtype=torch.float64, generator=generator)


def _tokens(generator: Generator) -> Tensor:
    lengths = torch.randint(1, 6, (NUM_SAMPLES, 1), generator=generator)
    tokens = torch.randint(1, 6, (NUM_SAMPLES, 5), generator=generator)
    return tokens * (torch.arange(5) < lengths)


def _named(generator: Generator) -> dict[str, Tensor]:
    scale = torch.rand(NUM_SAMPLES, dtype=torch.float64, generator=generator)
    return {"features": _vectors(generator), "scale": 0.5 + scale}


@final
@dataclass(frozen=True)
class Network:
    """How a network is made for a number of outputs, and how its inputs are drawn."""

    build: Callable[[int], nn.Module]
    inputs: Callable[[Generator], Any]


NETWORKS: Mapping[str, Network] = {
    "linear": Network(_linear, _vectors),
    "mlp": Network(_mlp, _vectors),
    "cnn": Network(_cnn, _images),
    "batch-norm": Network(_batch_norm, _vectors),
    "tied": Network(Tied, _vectors),
    "attention": Network(Attention, _sequences),
    "token-bag": Network(TokenBag, _tokens),
    "named-inputs": Network(Named, _named),
}


def _classes(generator: Generator) -> Tensor:
    return torch.cat([torch.arange(3), torch.randint(0, 3, (4,), generator=generator)])


def _switches(generator: Generator) -> Tensor:
    return torch.tensor([0.0, 1, 1, 0, 1, 1, 1], dtype=torch.float64)


def _many_switches(generator: Generator) -> Tensor:
    return torch.randint(0, 2, (NUM_SAMPLES, 3), generator=generator).double()


def _numbers(generator: Generator) -> Tensor:
    return torch.randn(NUM_SAMPLES, 2, dtype=torch.float64, generator=generator)


def _counts(generator: Generator) -> Tensor:
    return torch.randint(0, 5, (NUM_SAMPLES, 2), generator=generator)


def soft_absolute(outputs: Tensor, y: Tensor) -> Tensor:
    """Loss of the user's own: a smooth absolute error, summed over the outputs of a sample."""
    return ((outputs - y).square() + 1).sqrt().sum(-1)


@final
@dataclass(frozen=True)
class Target:
    """A likelihood, how many outputs it takes here, and how its targets are drawn."""

    likelihood: Likelihood
    num_outputs: int
    targets: Callable[[Generator], Tensor]


LIKELIHOODS: Mapping[str, Target] = {
    "categorical": Target(Categorical(), 3, _classes),
    "bernoulli": Target(Bernoulli(), 1, _switches),
    "multi-label": Target(Bernoulli(), 3, _many_switches),
    "gaussian": Target(Gaussian(sigma=0.7), 2, _numbers),
    "poisson": Target(Poisson(), 2, _counts),
    "per-sample": Target(PerSample(soft_absolute), 2, _numbers),
}


def make_module(network: str, likelihood: str) -> nn.Module:
    """Build the network of a case, as its user has it: in train mode, dropout on."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(7)
        return NETWORKS[network].build(LIKELIHOODS[likelihood].num_outputs).double()


def make_data(network: str, likelihood: str, batch_size: int = BATCH_SIZE) -> Batches:
    """Draw the data of a case."""
    generator = Generator().manual_seed(11)
    inputs = NETWORKS[network].inputs(generator)
    targets = LIKELIHOODS[likelihood].targets(generator)
    if isinstance(inputs, Tensor):
        return Batches((inputs, targets), batch_size)
    columns = {**inputs, "labels": targets}
    rows = [{key: column[i] for key, column in columns.items()} for i in range(NUM_SAMPLES)]
    return Batches(rows, batch_size)


def make_case(network: str, likelihood: str) -> Case:
    """Build one row of the table."""
    module = make_module(network, likelihood)
    problem = Problem.from_module(module, LIKELIHOODS[likelihood].likelihood)
    return Case(f"{network}-{likelihood}", problem, make_data(network, likelihood))


CASES: tuple[Case, ...] = tuple(
    make_case(network, likelihood) for network in NETWORKS for likelihood in LIKELIHOODS
)
"""Every network with every likelihood."""


def select(*names: str) -> tuple[Case, ...]:
    """Cases whose network or likelihood is one of these."""
    return tuple(case for case in CASES if any(_holds(case.name, name) for name in names))


def _holds(case: str, name: str) -> bool:
    return case.startswith(f"{name}-") or case.endswith(f"-{name}")


def parts_of(case: Case) -> tuple[str, str]:
    """Names of the network and of the likelihood of a case."""
    (network,) = (name for name in NETWORKS if case.name.startswith(f"{name}-"))
    return network, case.name.removeprefix(f"{network}-")


def name_of(case: Case) -> str:
    """Name a case in the output of pytest: ``parametrize("case", CASES, ids=name_of)``."""
    return case.name
