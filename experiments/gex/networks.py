"""Small networks that train in seconds to minutes on one CPU core, and how they are trained.

A network is made with `seed`, so that its initial weights do not depend on what ran before.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from afterfit import Bernoulli, Gaussian

Augment = Callable[[Tensor, Generator], Tensor]
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Regime:
    """How long to train, with what augmentation, how much longer if not every label is fitted."""

    epochs: int
    augment: Augment | None
    max_extra_epochs: int = 0


@dataclass(frozen=True)
class Checkpoint:
    """Parameters and buffers after an epoch, with the learning rate of its last step."""

    state: dict[str, Tensor]
    epoch: int
    learning_rate: float


@dataclass(frozen=True)
class Trained:
    """A trained network in eval mode and what was seen on the way.

    `losses` (nats) and `margins` (own logit minus largest other one) are (N, epochs), recorded as
    each sample was visited: in train mode, augmented, before the step. A sample was classified
    correctly iff margin > 0.
    """

    network: nn.Module
    losses: Tensor
    margins: Tensor
    checkpoints: list[Checkpoint]
    train_accuracy: float
    cpu_seconds: float


# Augmentations --------------------------------------------------------------------------------


def shift(pixels: int, pad_mode: str = "replicate") -> Augment:
    """Move each image by up to `pixels` both ways; `pad_mode` is one of torch.nn.functional.pad."""

    def move(images: Tensor, generator: Generator) -> Tensor:
        count, _, height, width = images.shape
        padded = functional.pad(images, [pixels] * 4, mode=pad_mode)
        offsets = torch.randint(2 * pixels + 1, (2, count, 1), generator=generator)
        rows = (offsets[0] + torch.arange(height))[:, :, None]
        columns = (offsets[1] + torch.arange(width))[:, None, :]
        return padded[torch.arange(count)[:, None, None], :, rows, columns].permute(0, 3, 1, 2)

    return move


def flip(images: Tensor, generator: Generator) -> Tensor:
    """Mirror each image left to right with probability 1/2."""
    mirrored = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    return torch.where(mirrored, images.flip(-1), images)


def jitter(std: float) -> Augment:
    """Add normal noise: an augmentation for tables and features."""
    return lambda rows, generator: rows + std * torch.randn(rows.shape, generator=generator)


def drop_words(probability: float) -> Augment:
    """Replace each word by padding with the given probability; the first word always stays."""

    def drop(words: Tensor, generator: Generator) -> Tensor:
        keep = torch.rand(words.shape, generator=generator) >= probability
        keep[:, 0] = True
        return words * keep

    return drop


def chain(*augmentations: Augment) -> Augment:
    """Apply one augmentation after the other."""

    def apply(inputs: Tensor, generator: Generator) -> Tensor:
        for augment in augmentations:
            inputs = augment(inputs, generator)
        return inputs

    return apply


# Networks -------------------------------------------------------------------------------------


def mlp(
    num_features: int, num_classes: int, hidden: tuple[int, ...] = (128, 128), seed: int = 0
) -> nn.Module:
    """Fully connected network with ReLU on flattened inputs; hidden=() is a linear classifier."""
    torch.manual_seed(seed)
    widths = (num_features, *hidden)
    layers: list[nn.Module] = [nn.Flatten()]
    for width, next_width in pairwise(widths):
        layers += [nn.Linear(width, next_width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], num_classes))


def cnn(
    shape: Shape,
    num_classes: int,
    width: int = 16,
    hidden: int = 128,
    kernel: int = 5,
    seed: int = 0,
) -> nn.Module:
    """Two convolutions with BatchNorm, one hidden layer.

    On 28 x 28: 0.22 M parameters, or 0.11 M with hidden=64. On 8 x 8 (one pooling only): 0.081 M,
    or 0.11 M with width=24, kernel=3.
    """
    torch.manual_seed(seed)
    channels, height, _ = shape
    pool_first = nn.MaxPool2d(2) if height > 8 else nn.Identity()
    side = height // 4 if height > 8 else height // 2
    return nn.Sequential(
        nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        pool_first,
        nn.Conv2d(width, 2 * width, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(2 * width * side * side, hidden),
        nn.ReLU(),
        nn.Linear(hidden, num_classes),
    )


class Block(nn.Module):
    """Two 3 x 3 convolutions with a shortcut (He et al. 2016)."""

    def __init__(self, channels: int, width: int, stride: int):
        nn.Module.__init__(self)
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        same = channels == width and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, H, W) to (B, width, H / stride, W / stride)."""
        inner = self.bn1(self.conv1(x)).relu()
        return (self.bn2(self.conv2(inner)) + self.shortcut(x)).relu()


def resnet(
    shape: Shape, num_classes: int, width: int = 16, blocks: int = 1, stride: int = 2, seed: int = 0
) -> nn.Module:
    """Residual network with three stages; stride=2 halves the picture at once, for a CPU."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = [
        nn.Conv2d(shape[0], width, 3, stride, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    ]
    channels = width
    for stage in range(3):
        for block in range(blocks):
            halve = 2 if stage > 0 and block == 0 else 1
            layers.append(Block(channels, width << stage, halve))
            channels = width << stage
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *pool, nn.Linear(channels, num_classes))


class BagOfWords(nn.Module):
    """Mean word embedding, one hidden layer (Shen et al. 2018, SWEM); word 0 is padding."""

    def __init__(self, vocabulary_size: int, num_classes: int, width: int, hidden: int):
        nn.Module.__init__(self)
        self.embedding = nn.Embedding(vocabulary_size, width)
        self.hidden = nn.Linear(width, hidden)
        self.output = nn.Linear(hidden, num_classes)

    def forward(self, words: Tensor) -> Tensor:
        """Map word indices (B, length) to logits (B, classes)."""
        present = (words != 0).to(self.embedding.weight.dtype)[..., None]
        mean = (self.embedding(words) * present).sum(-2) / present.sum(-2).clamp(min=1)
        return self.output(self.hidden(mean).relu())


def bag_of_words(
    vocabulary_size: int, num_classes: int, width: int = 64, hidden: int = 64, seed: int = 0
) -> nn.Module:
    """Text classifier on the word indices of `data.tokens`."""
    torch.manual_seed(seed)
    return BagOfWords(vocabulary_size, num_classes, width, hidden)


# Training -------------------------------------------------------------------------------------


def early(augment: Augment | None = None, epochs: int = 8) -> Regime:
    """Stop long before wrong labels are fitted."""
    return Regime(epochs, augment)


def trained(augment: Augment | None, epochs: int = 40) -> Regime:
    """Train for a moderate time, augmented: what a careful user would do."""
    return Regime(epochs, augment)


def memorized(epochs: int = 40, max_extra_epochs: int = 400) -> Regime:
    """Fit every training label, also the wrong ones; no augmentation."""
    return Regime(epochs, None, max_extra_epochs)


def rate(progress: float, peak: float, warm_up: float = 0.1) -> float:
    """Learning rate at a fraction `progress` of the steps: linear warm-up, then a cosine to 0."""
    if progress < warm_up:
        return peak * progress / warm_up
    return peak * (1 + math.cos(math.pi * (progress - warm_up) / (1 - warm_up))) / 2


def train(
    network: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    regime: Regime,
    seed: int,
    peak_rate: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    batch_size: int = 128,
    num_checkpoints: int = 5,
) -> Trained:
    """Train in place with SGD; the network comes back in eval mode.

    Checkpoints are spread over the second half of the epochs, the last one at the end. If the
    regime asks for it, training goes on at a quarter of the peak rate, without weight decay,
    until every label is fitted; these epochs are in the traces, and the last checkpoint is
    replaced by the final state.
    """
    start = time.process_time()
    generator = Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(network.parameters(), 0.0, momentum, weight_decay=weight_decay)
    run = partial(
        run_epoch, network, optimizer, inputs, labels, regime.augment, batch_size, generator
    )
    half, last = math.ceil(regime.epochs / 2), regime.epochs
    saved = torch.linspace(last, half, num_checkpoints).round().int().tolist()

    traces, checkpoints = [], []
    for epoch in range(regime.epochs):
        traces.append(run(peak_rate, epoch / last, (epoch + 1) / last))
        if epoch + 1 in saved:
            checkpoints.append(snapshot(network, epoch + 1, optimizer))

    optimizer.param_groups[0]["weight_decay"] = 0.0
    for epoch in range(last, last + regime.max_extra_epochs):
        if accuracy(network, inputs, labels) == 1:
            break
        traces.append(run(peak_rate / 4, 0.1, 0.1))
        checkpoints[-1] = snapshot(network, epoch + 1, optimizer)

    losses, margins = (torch.stack(trace, 1) for trace in zip(*traces, strict=True))
    reached = accuracy(network, inputs, labels)
    return Trained(network, losses, margins, checkpoints, reached, time.process_time() - start)


def train_adam(
    network: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    likelihood: Gaussian | Bernoulli,
    epochs: int,
    seed: int,
    peak_rate: float = 0.01,
    batch_size: int = 64,
) -> Trained:
    """Train on numbers or on several yes-or-no labels with Adam and a cosine; no checkpoints.

    Margins are those of the yes-or-no output that agrees least with its label, and empty (N, 0)
    for numbers. `train_accuracy` is the share of all labels that are predicted, or R² of the
    targets.
    """
    start = time.process_time()
    generator = Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(network.parameters(), peak_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    several = isinstance(likelihood, Bernoulli)
    losses, margins = torch.zeros(2, len(targets), epochs)
    network.train()
    for epoch in range(epochs):
        for index in torch.randperm(len(targets), generator=generator).split(batch_size):
            found, wanted = network(inputs[index]), targets[index]
            loss = likelihood.loss(found, wanted)
            optimizer.zero_grad()
            loss.mean().backward()
            optimizer.step()
            losses[index, epoch] = loss.detach()
            if several:
                margins[index, epoch] = (found.detach() * (2 * wanted - 1)).amin(1)
        schedule.step()
    found = logits(network, inputs)
    if several:
        reached = float(((found > 0) == (targets > 0.5)).float().mean())
    else:
        reached = 1 - float((targets - found).square().mean() / targets.var(unbiased=False))
    margins = margins if several else margins[:, :0]
    return Trained(network, losses, margins, [], reached, time.process_time() - start)


def run_epoch(
    network: nn.Module,
    optimizer: torch.optim.SGD,
    inputs: Tensor,
    labels: Tensor,
    augment: Augment | None,
    batch_size: int,
    generator: Generator,
    peak: float,
    begin: float,
    end: float,
) -> tuple[Tensor, Tensor]:
    """One pass in random order, from `begin` to `end` of the schedule of `rate`."""
    network.train()
    losses, margins = torch.zeros(2, len(labels))
    batches = torch.randperm(len(labels), generator=generator).split(batch_size)
    # A batch of one sample has no variance for BatchNorm: it joins the batch before it.
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches = (*batches[:-2], torch.cat(batches[-2:]))

    for step, index in enumerate(batches):
        progress = begin + (end - begin) * (step + 1) / len(batches)
        optimizer.param_groups[0]["lr"] = rate(progress, peak)
        x = inputs[index] if augment is None else augment(inputs[index], generator)
        logits = network(x)
        loss = functional.cross_entropy(logits, labels[index], reduction="none")
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        losses[index] = loss.detach()
        margins[index] = margin(logits.detach(), labels[index])
    return losses, margins


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Own logit minus the largest other one, (B,)."""
    own = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return (own - others.max(1, keepdim=True).values)[:, 0]


def snapshot(network: nn.Module, epoch: int, optimizer: torch.optim.SGD) -> Checkpoint:
    """Copy what the network holds now."""
    state = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    return Checkpoint(state, epoch, optimizer.param_groups[0]["lr"])


def logits(network: nn.Module, inputs: Tensor, batch_size: int = 500) -> Tensor:
    """Outputs in eval mode, (N, classes); the network stays in eval mode."""
    network.eval()
    with torch.no_grad():
        return torch.cat([network(batch) for batch in inputs.split(batch_size)])


def accuracy(network: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Fraction of labels that the network predicts in eval mode."""
    return float((logits(network, inputs).argmax(1) == labels).float().mean())
