"""Small networks with every way of using parameters that the layer rules know, and some others."""

from collections.abc import Callable, Mapping

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from tests.unit.curvature.zoo_odd import ODD
from tests.unit.curvature.zoo_parts import (
    IMAGE,
    ROWS,
    WAVE,
    Kind,
    Lambda,
    conv,
    linear,
    parameter,
    sequence,
)

NUM_SAMPLES = 4


def attend(self: nn.Module, x: Tensor) -> Tensor:
    return self.head(self.body(x, x, x)[0].mean(1))


def attend_time_first(self: nn.Module, x: Tensor) -> Tensor:
    turned = x.transpose(0, 1)
    return self.head(self.body(turned, turned, turned)[0].mean(0))


def attend_elsewhere(self: nn.Module, x: Tensor) -> Tensor:
    return self.head(self.body(x, x[:, :2].tanh(), x[:, :2].tanh())[0].mean(1))


def vision(self: nn.Module, x: Tensor) -> Tensor:
    patches = self.patches(x).flatten(2).transpose(1, 2)
    tokens = torch.cat([self.token.expand(len(x), -1, -1), patches], dim=1) + self.position
    return self.head(self.norm(self.block(tokens))[:, 0])


def language(self: nn.Module, x: Tensor) -> Tensor:
    hidden = self.tokens(x) + self.positions(torch.arange(x.shape[1]))
    q, k, v = self.qkv(self.norm(hidden)).chunk(3, dim=-1)
    hidden = hidden + functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    return functional.linear(hidden[:, -1], self.tokens.weight)[:, :3]


def by_hand(self: nn.Module, x: Tensor) -> Tensor:
    hidden = (x @ self.first + self.shift).tanh() * self.size
    hidden = torch.addmm(self.offset, hidden, self.second).tanh()
    return torch.matmul(hidden, self.third.T) @ self.fourth.t()


def folded(self: nn.Module, x: Tensor) -> Tensor:
    rows = self.first(x.reshape(-1, x.shape[-1])).tanh()
    return self.head(rows.view(len(x), -1, 4).mean(1))


def time_first(self: nn.Module, x: Tensor) -> Tensor:
    rows = self.first(x.transpose(0, 1).reshape(-1, x.shape[-1])).tanh()
    return self.head(rows.view(-1, len(x), 4).mean(0))


def again(self: nn.Module, x: Tensor) -> Tensor:
    for _ in range(3):
        x = self.layer(x).tanh()
    return self.head(x)


def recurrent(self: nn.Module, x: Tensor) -> Tensor:
    return self.head(self.body(x)[0][:, -1])


def added_in_place(self: nn.Module, x: Tensor) -> Tensor:
    hidden = self.first(x)
    hidden += self.shift
    return self.head(functional.relu_(hidden))


def pooled(kind: str) -> Callable[[nn.Module, Tensor], Tensor]:
    def run(self: nn.Module, x: Tensor) -> Tensor:
        return self.head(getattr(torch, kind)(self.body(x).flatten(2), dim=2))

    return run


ZOO: Mapping[str, Kind] = {
    "conv1d": Kind(lambda: conv(nn.Conv1d(4, 6, 3, 2, 1, 2, groups=2), 6), WAVE),
    "conv2d": Kind(lambda: conv(nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 0), (1, 2)), 6), IMAGE),
    "conv2d-same": Kind(lambda: conv(nn.Conv2d(4, 4, (4, 3), padding="same"), 4), IMAGE),
    "conv2d-valid": Kind(lambda: conv(nn.Conv2d(4, 3, 2, padding="valid", bias=False), 3), IMAGE),
    "conv2d-depth": Kind(lambda: conv(nn.Conv2d(4, 8, 3, groups=4), 8), IMAGE),
    "conv2d-circular": Kind(
        lambda: conv(nn.Conv2d(4, 3, 3, padding=1, padding_mode="circular"), 3), IMAGE
    ),
    "conv3d": Kind(lambda: conv(nn.Conv3d(2, 3, (1, 2, 3), 1, (0, 1, 1)), 3), (2, 2, 3, 4)),
    "batch-norm2d": Kind(lambda: conv(nn.BatchNorm2d(4), 4), IMAGE),
    "batch-norm1d": Kind(lambda: conv(nn.BatchNorm1d(4), 4), WAVE),
    "group-norm": Kind(lambda: conv(nn.GroupNorm(2, 4), 4), IMAGE),
    "instance-norm": Kind(lambda: conv(nn.InstanceNorm2d(4, affine=True), 4), IMAGE),
    "layer-norm": Kind(lambda: sequence(nn.LayerNorm((3, 4))), ROWS),
    "rms-norm": Kind(lambda: sequence(nn.RMSNorm(4)), ROWS),
    "transposed": Kind(lambda: conv(nn.ConvTranspose2d(4, 3, 2), 3), IMAGE),
    "attention": Kind(
        lambda: Lambda(attend, body=nn.MultiheadAttention(4, 2, batch_first=True), head=linear()),
        ROWS,
    ),
    "attention-time-first": Kind(
        lambda: Lambda(attend_time_first, body=nn.MultiheadAttention(4, 2), head=linear()), (4, 4)
    ),
    "cross-attention": Kind(
        lambda: Lambda(
            attend_elsewhere, body=nn.MultiheadAttention(4, 2, batch_first=True), head=linear()
        ),
        ROWS,
    ),
    "vision": Kind(
        lambda: Lambda(
            vision,
            patches=nn.Conv2d(4, 4, 2, 2),
            token=parameter(1, 1, 4),
            position=parameter(1, 7, 4),
            block=nn.TransformerEncoderLayer(
                4, 2, 5, batch_first=True, norm_first=True, activation="gelu"
            ),
            norm=nn.LayerNorm(4),
            head=linear(),
        ),
        (4, 4, 6),
    ),
    "language": Kind(
        lambda: Lambda(
            language,
            tokens=nn.Embedding(5, 4),
            positions=nn.Embedding(6, 4),
            norm=nn.LayerNorm(4),
            qkv=nn.Linear(4, 12, bias=False),
        ),
        (6,),
        tokens=True,
    ),
    "by-hand": Kind(
        lambda: Lambda(
            by_hand,
            first=parameter(4, 3),
            shift=parameter(3),
            size=parameter(3),
            offset=parameter(5),
            second=parameter(3, 5),
            third=parameter(2, 5),
            fourth=parameter(2, 2),
        ),
        (4,),
    ),
    "folded": Kind(lambda: Lambda(folded, first=nn.Linear(4, 4), head=linear()), ROWS),
    "time-first": Kind(lambda: Lambda(time_first, first=nn.Linear(4, 4), head=linear()), (4, 4)),
    "again": Kind(lambda: Lambda(again, layer=nn.Linear(4, 4), head=linear()), (4,)),
    "unused": Kind(
        lambda: Lambda(
            lambda self, x: self.head(x), head=linear(), other=nn.Linear(3, 2), alone=parameter(2)
        ),
        (4,),
    ),
    "recurrent": Kind(
        lambda: Lambda(recurrent, body=nn.LSTM(4, 4, batch_first=True), head=linear()),
        ROWS,
    ),
    "weight-norm": Kind(
        lambda: nn.Sequential(
            nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), nn.Tanh(), nn.Linear(3, 2)
        ),
        (4,),
        ("0.parametrizations.weight.original0", "0.parametrizations.weight.original1"),
    ),
    "in-place": Kind(
        lambda: Lambda(added_in_place, first=nn.Linear(4, 4), shift=parameter(4), head=linear()),
        (4,),
    ),
    "temperature": Kind(
        lambda: Lambda(lambda self, x: self.head(x) / self.t.exp(), head=linear(), t=parameter()),
        (4,),
        ("t",),
    ),
    "size": Kind(
        lambda: Lambda(
            lambda self, x: self.head(x) * self.a + self.b,
            head=linear(),
            a=parameter(),
            b=parameter(),
        ),
        (4,),
    ),
    "max": Kind(lambda: Lambda(pooled("amax"), body=nn.Conv2d(4, 4, 2), head=linear()), IMAGE),
    **ODD,
}


SCALARS = ("temperature", "size")
"""Networks with a parameter that has no axes, as CLIP has."""


def build(name: str) -> tuple[nn.Module, Tensor]:
    """Make a network in float64 and its inputs."""
    kind = ZOO[name]
    generator = Generator().manual_seed(3)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(5)
        module = kind.build().double()
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.running_mean = torch.randn(part.num_features, generator=generator).double()
            part.running_var = 0.5 + torch.rand(part.num_features, generator=generator).double()
    for p in module.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
    shape = (NUM_SAMPLES, *kind.shape)
    if kind.tokens:
        return module, torch.randint(0, 5, shape, generator=generator)
    return module, torch.randn(shape, generator=generator, dtype=torch.float64)
