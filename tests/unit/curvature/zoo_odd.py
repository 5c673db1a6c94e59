"""Networks that are a little unusual: recurrent, transposed, parametrized, cut up, in experts."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize, prune

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


def last(self: nn.Module, x: Tensor) -> Tensor:
    return self.head(self.body(x)[0][:, -1])


def time_first(self: nn.Module, x: Tensor) -> Tensor:
    return self.head(self.body(x.transpose(0, 1))[0].mean(0))


def by_cells(self: nn.Module, x: Tensor) -> Tensor:
    state = x.new_zeros(len(x), 4)
    for row in x.unbind(1):
        state = self.body(row, state)
    return self.head(state)


def two_inputs(self: nn.Module, x: Tensor) -> Tensor:
    return self.head(self.body(x[:, 0], x[:, 1, :3]).tanh())


def by_einsum(self: nn.Module, x: Tensor) -> Tensor:
    q = torch.einsum("btd,dhk->bthk", x, self.query)
    v = torch.einsum("hkd,btd->bhtk", self.value, x)
    scores = torch.einsum("bthk,bhsk->bhts", q, v).softmax(-1)
    mixed = torch.einsum("bhts,bhsk->bthk", scores, v)
    out = torch.einsum("...hk,hkd->...d", mixed, self.out)
    return torch.einsum("btd,tc->bc", out, self.over)


def by_heads(self: nn.Module, x: Tensor) -> Tensor:
    hidden = (x[:, None] @ self.each).tanh()  # (B, heads, rows, width)
    hidden = torch.matmul(self.mix, hidden)  # rows are mixed from the left
    return (hidden.mean((1, 2)) @ self.head) * (hidden.mean(1) @ self.vector).sum(1)[:, None]


def by_batches(self: nn.Module, x: Tensor) -> Tensor:
    hidden = x.tanh()  # (B, batches, rows, width)
    return torch.stack([torch.bmm(one, self.each) for one in hidden]).mean((1, 2)) @ self.head


def cosine(self: nn.Module, x: Tensor) -> Tensor:
    hidden = functional.normalize(self.body(x), dim=-1)
    return functional.linear(hidden, functional.normalize(self.prototypes, dim=-1)) / self.t.exp()


def overlapping(self: nn.Module, x: Tensor) -> Tensor:
    left, right = self.weight[:4], self.weight[2:]
    return self.head(functional.linear(x, left).tanh() + functional.linear(x, right).sin())


def nested(self: nn.Module, x: Tensor) -> Tensor:
    narrow = functional.linear(x, self.weight[:2, :])
    return functional.linear(x, self.weight).tanh()[:, :2] + narrow


def tied(self: nn.Module, x: Tensor) -> Tensor:
    return functional.linear(functional.linear(x, self.weight).tanh(), self.weight.t())


def experts(self: nn.Module, x: Tensor) -> Tensor:
    rows = [(self.one if bool(row.sum() > 0) else self.two)(row) for row in x]
    return self.head(torch.stack(rows).tanh())


def gated(self: nn.Module, x: Tensor) -> Tensor:
    shares = self.gate(x).softmax(-1)
    return shares[:, :1] * self.one(x) + shares[:, 1:] * self.two(x)


def in_place(self: nn.Module, x: Tensor) -> Tensor:
    hidden = self.first(x)
    alias = hidden
    hidden += self.shift
    alias.add_(self.again)
    return self.head(alias.relu_())


def scaled_in_place(self: nn.Module, x: Tensor) -> Tensor:
    hidden = self.first(x)
    hidden *= self.shift
    return self.head(hidden)


def shifted(self: nn.Module, x: Tensor) -> Tensor:
    return self.head((self.shift - self.first(x - self.center)).tanh())


def bag(self: nn.Module, tokens: Tensor) -> Tensor:
    return self.head(self.body(tokens).tanh())


def hypernetwork(self: nn.Module, x: Tensor) -> Tensor:
    made = self.makes(x).view(-1, 2, 4)
    return (made @ x[..., None])[..., 0]


def mixture(self: nn.Module, x: Tensor) -> Tensor:
    return self.a * self.one(x) + (1 - self.a) * self.two(x)


def low_rank(self: nn.Module, x: Tensor) -> Tensor:
    return functional.linear(x, self.up @ self.down) + self.head(x)


def prompted(self: nn.Module, x: Tensor) -> Tensor:
    return self.head((self.body(self.prompt).tanh().mean(0) + x).tanh())


def squeezed(self: nn.Module, x: Tensor) -> Tensor:
    hidden = functional.conv2d(x, self.body, padding=1)
    share = torch.sigmoid(self.gate(hidden.mean((2, 3))))[:, :, None, None]
    return self.head((hidden * share).mean((2, 3)))


class _Sine(torch.autograd.Function):
    """A function of the user's own, with a backward pass and no forward-mode derivative."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.sin()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:  # noqa: ARG004
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, pulled: Tensor) -> Tensor:
        return pulled * ctx.saved_tensors[0].cos()


def custom(self: nn.Module, x: Tensor) -> Tensor:
    return functional.linear(_Sine.apply(self.body(x)), _Sine.apply(self.weight))


class _Symmetric(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.triu() + weight.triu(1).mT


def symmetric() -> nn.Module:
    layer = nn.Linear(4, 4)
    parametrize.register_parametrization(layer, "weight", _Symmetric())
    return wrapped(layer)


def pruned() -> nn.Module:
    layer = nn.Linear(4, 4)
    prune.random_unstructured(layer, "weight", amount=5)
    return wrapped(layer)


def old_weight_norm() -> nn.Module:
    return wrapped(nn.utils.weight_norm(nn.Linear(4, 4)))


def recurrent(run: Callable[..., Tensor], body: nn.Module, width: int = 4) -> nn.Module:
    return Lambda(run, body=body, head=nn.Linear(width, 2))


def wrapped(layer: nn.Module) -> nn.Module:
    return nn.Sequential(layer, nn.Tanh(), linear())


ODD: Mapping[str, Kind] = {
    "rnn": Kind(lambda: recurrent(last, nn.RNN(4, 4, batch_first=True)), ROWS),
    "rnn-relu": Kind(lambda: recurrent(time_first, nn.RNN(4, 4, nonlinearity="relu")), ROWS),
    "gru": Kind(lambda: recurrent(last, nn.GRU(4, 4, 2, batch_first=True)), ROWS),
    "lstm-both-ways": Kind(
        lambda: recurrent(last, nn.LSTM(4, 2, 2, batch_first=True, bidirectional=True)), ROWS
    ),
    "lstm-projected": Kind(
        lambda: recurrent(last, nn.LSTM(4, 3, batch_first=True, proj_size=2, bias=False), 2), ROWS
    ),
    "gru-cell": Kind(lambda: recurrent(by_cells, nn.GRUCell(4, 4)), ROWS),
    "transposed1d": Kind(
        lambda: conv(nn.ConvTranspose1d(4, 6, 3, 2, 1, 1, groups=2, dilation=2), 6), WAVE
    ),
    "transposed2d": Kind(
        lambda: conv(nn.ConvTranspose2d(4, 3, (2, 3), (1, 2), (0, 1), (0, 1), bias=False), 3), IMAGE
    ),
    "transposed3d": Kind(lambda: conv(nn.ConvTranspose3d(2, 3, 2, 2), 3), (2, 2, 2, 2)),
    "instance-norm1d": Kind(lambda: conv(nn.InstanceNorm1d(4, affine=True), 4), WAVE),
    "instance-norm-tracked": Kind(
        lambda: conv(nn.InstanceNorm2d(4, affine=True, track_running_stats=True), 4), IMAGE
    ),
    "prelu": Kind(lambda: wrapped(nn.PReLU(4)), (4,)),
    "prelu-one": Kind(lambda: conv(nn.PReLU(), 4), IMAGE),
    "prelu-channels": Kind(lambda: conv(nn.PReLU(4), 4), IMAGE),
    "bilinear": Kind(lambda: Lambda(two_inputs, body=nn.Bilinear(4, 3, 4), head=linear()), ROWS),
    "einsum": Kind(
        lambda: Lambda(
            by_einsum,
            query=parameter(4, 2, 3),
            value=parameter(2, 3, 4),
            out=parameter(2, 3, 4),
            over=parameter(3, 2),
        ),
        ROWS,
    ),
    "heads": Kind(
        lambda: Lambda(
            by_heads,
            each=parameter(2, 4, 5),
            mix=parameter(2, 3, 3),
            head=parameter(5, 2),
            vector=parameter(5),
        ),
        ROWS,
    ),
    "batches": Kind(
        lambda: Lambda(by_batches, each=parameter(3, 4, 4), head=parameter(4, 2)), (3, 2, 4)
    ),
    "cosine": Kind(
        lambda: Lambda(cosine, body=linear(), prototypes=parameter(3, 2), t=parameter()),
        (4,),
        ("prototypes", "t"),
    ),
    "overlapping": Kind(lambda: Lambda(overlapping, weight=parameter(6, 4), head=linear()), (4,)),
    "nested": Kind(lambda: Lambda(nested, weight=parameter(4, 4)), (4,)),
    "tied-transposed": Kind(lambda: Lambda(tied, weight=parameter(3, 4)), (4,)),
    "experts": Kind(
        lambda: Lambda(experts, one=linear(), two=linear(), head=nn.Linear(2, 2)), (4,)
    ),
    "gated": Kind(lambda: Lambda(gated, gate=linear(), one=linear(), two=linear()), (4,)),
    "in-place-twice": Kind(
        lambda: Lambda(
            in_place, first=nn.Linear(4, 4), shift=parameter(4), again=parameter(4), head=linear()
        ),
        (4,),
    ),
    "in-place-scale": Kind(
        lambda: Lambda(scaled_in_place, first=nn.Linear(4, 4), shift=parameter(4), head=linear()),
        (4,),
        ("shift",),
    ),
    "shifted": Kind(
        lambda: Lambda(
            shifted, first=nn.Linear(4, 4), shift=parameter(4), center=parameter(4), head=linear()
        ),
        (4,),
    ),
    "embedding-bag": Kind(
        lambda: Lambda(bag, body=nn.EmbeddingBag(5, 4), head=linear()),
        (3,),
        tokens=True,
    ),
    "embedding-bag-max": Kind(
        lambda: Lambda(bag, body=nn.EmbeddingBag(5, 4, mode="max"), head=linear()),
        (3,),
        tokens=True,
    ),
    "old-weight-norm": Kind(old_weight_norm, (4,), ("0.weight_g", "0.weight_v")),
    "spectral-norm": Kind(
        lambda: wrapped(parametrizations.spectral_norm(nn.Linear(4, 4))),
        (4,),
        ("0.parametrizations.weight.original",),
    ),
    "old-spectral-norm": Kind(
        lambda: wrapped(nn.utils.spectral_norm(nn.Linear(4, 4))), (4,), ("0.weight_orig",)
    ),
    "weight-norm-conv": Kind(
        lambda: conv(parametrizations.weight_norm(nn.Conv2d(4, 3, 2)), 3),
        IMAGE,
        ("body.parametrizations.weight.original0", "body.parametrizations.weight.original1"),
    ),
    "orthogonal": Kind(
        lambda: wrapped(parametrizations.orthogonal(nn.Linear(4, 4), orthogonal_map="cayley")),
        (4,),
        ("0.parametrizations.weight.original",),
    ),
    "symmetric": Kind(symmetric, (4,), ("0.parametrizations.weight.original",)),
    "pruned": Kind(pruned, (4,)),
    "hypernetwork": Kind(lambda: Lambda(hypernetwork, makes=nn.Linear(4, 8)), (4,)),
    "mixture": Kind(lambda: Lambda(mixture, one=linear(), two=linear(), a=parameter()), (4,)),
    "low-rank": Kind(
        lambda: Lambda(low_rank, up=parameter(2, 1), down=parameter(1, 4), head=linear()),
        (4,),
        ("up", "down"),
    ),
    "prompt": Kind(
        lambda: Lambda(prompted, prompt=parameter(3, 4), body=nn.Linear(4, 4), head=linear()),
        (4,),
        ("prompt", "body.weight", "body.bias"),
    ),
    "custom": Kind(
        lambda: Lambda(custom, body=nn.Linear(4, 3), weight=parameter(2, 3)), (4,), ("weight",)
    ),
    "all-uncovered": Kind(
        lambda: Lambda(lambda self, x: x @ self.weight.exp(), weight=parameter(4, 2)),
        (4,),
        ("weight",),
    ),
    "squeezed": Kind(
        lambda: Lambda(squeezed, body=parameter(4, 4, 3, 3), gate=nn.Linear(4, 4), head=linear()),
        IMAGE,
    ),
    "shared-norm": Kind(lambda: sequence(nn.Sequential(*[nn.LayerNorm(4)] * 2)), ROWS),
}
