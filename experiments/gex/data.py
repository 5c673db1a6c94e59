"""Read the data sets of the GEX experiments. The folder with the files is always an argument.

Images come as float tensors (N, channels, height, width) scaled to (pixel / 255 - 0.5) / 0.25,
tables are standardized with the training rows, texts are tuples of strings. `labels` are the clean
ones.
"""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, make_friedman1
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.model_selection import train_test_split
from torch import Tensor

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10N = ("aggre", "random1", "random2", "random3", "worse")
AG_NEWS = ("World", "Sports", "Business", "Sci/Tech")
PNEUMONIA = ("normal", "pneumonia")
PROPERTIES = ("even", "at least 5", "prime", "has a loop", "divisible by 3")
TREC = ("description", "entity", "abbreviation", "human", "location", "number")


@dataclass(frozen=True)
class Dataset:
    """Training and test samples with their clean labels.

    `inputs` is a float tensor, or a tuple of strings for texts; labels are int64 class indices.
    """

    inputs: Tensor | tuple[str, ...]
    labels: Tensor
    test_inputs: Tensor | tuple[str, ...]
    test_labels: Tensor
    classes: tuple[str, ...]


def digits(test_size: int = 597, seed: int = 0) -> Dataset:
    """Handwritten digits of scikit-learn, 8 x 8; 1797 samples in all."""
    pixels, labels = load_digits(return_X_y=True)
    images = pixels.reshape(-1, 1, 8, 8) / 16.0
    split = train_test_split(
        images, labels, test_size=test_size, random_state=seed, stratify=labels
    )
    train, test, train_labels, test_labels = split
    classes = tuple(str(digit) for digit in range(10))
    return Dataset(
        _scale(train), _classes(train_labels), _scale(test), _classes(test_labels), classes
    )


def breast_cancer(test_size: int = 169, seed: int = 0) -> Dataset:
    """Wisconsin breast cancer of scikit-learn, 30 features; 569 samples in all."""
    features, labels = load_breast_cancer(return_X_y=True)
    split = train_test_split(
        features, labels, test_size=test_size, random_state=seed, stratify=labels
    )
    train, test, train_labels, test_labels = split
    mean, std = train.mean(0), train.std(0)
    train, test = ((rows - mean) / std for rows in (train, test))
    return Dataset(
        torch.tensor(train, dtype=torch.float32),
        _classes(train_labels),
        torch.tensor(test, dtype=torch.float32),
        _classes(test_labels),
        ("malignant", "benign"),
    )


def mnist(data: Path, train_size: int = 4000, test_size: int = 2000, seed: int = 0) -> Dataset:
    """Random subsets of MNIST, 28 x 28."""
    rng = np.random.default_rng(seed)
    parts = []
    for name, size in (("train", train_size), ("test", test_size)):
        with np.load(Path(data) / "mnist" / f"mnist_{name}.npz") as file:
            images, labels = file["images"], file["labels"]
        chosen = rng.choice(len(labels), size, replace=False)
        parts += [_scale(images[chosen][:, None] / 255.0), _classes(labels[chosen])]
    return Dataset(*parts, classes=tuple(str(digit) for digit in range(10)))


def cifar10(data: Path, train_size: int = 4000, test_size: int = 1000) -> Dataset:
    """First samples of the lossless CIFAR-10 subset, in the original order, as CIFAR-10N has it."""
    images, labels, test_images, test_labels = cifar10_pixels(data, train_size, test_size)
    return Dataset(
        _scale(images.transpose(0, 3, 1, 2) / 255.0),
        _classes(labels),
        _scale(test_images.transpose(0, 3, 1, 2) / 255.0),
        _classes(test_labels),
        CIFAR10,
    )


def cifar10_pixels(
    data: Path, train_size: int = 4000, test_size: int = 1000
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Lossless uint8 images (N, 32, 32, 3) and labels, training then test."""
    with np.load(Path(data) / "cifar10" / "cifar10_lossless_subset.npz") as file:
        available = len(file["train_labels"]), len(file["test_labels"])
        if train_size > available[0] or test_size > available[1]:
            raise ValueError(
                f"asked for {train_size} and {test_size} lossless images, expected at most "
                f"{available[0]} and {available[1]}; use cifar10_jpeg for more"
            )
        return (
            file["train_images"][:train_size],
            file["train_labels"][:train_size],
            file["test_images"][:test_size],
            file["test_labels"][:test_size],
        )


def cifar10_jpeg(data: Path, train_index: Sequence[int], test_index: Sequence[int]) -> Dataset:
    """CIFAR-10 images at given positions of the original order, decoded from JPEG (lossy)."""
    parts = []
    for name, index in (("train", train_index), ("test", test_index)):
        with np.load(Path(data) / "cifar10" / f"cifar10_{name}_jpeg.npz") as file:
            stream, offsets, labels = file["jpeg"], file["offsets"], file["labels"]
        index = np.asarray(index)
        images = np.stack([_decode(stream[offsets[i] : offsets[i + 1]]) for i in index])
        parts += [_scale(images.transpose(0, 3, 1, 2) / 255.0), _classes(labels[index])]
    return Dataset(*parts, classes=CIFAR10)


def cifar10n(data: Path, size: int = 4000) -> dict[str, Tensor]:
    """Human labels of the first `size` CIFAR-10 training images, by the names in CIFAR10N."""
    with np.load(Path(data) / "cifar10" / "cifar10n_labels.npz") as file:
        names = {kind: kind.replace("random", "random_label") for kind in CIFAR10N}
        names |= {kind: f"{kind}_label" for kind in ("aggre", "worse")}
        return {kind: _classes(file[name][:size]) for kind, name in names.items()}


def noisy_ag_news(
    data: Path, train_size: int = 10000, test_size: int = 2000
) -> tuple[Dataset, Tensor]:
    """NoisyAG-News texts with the true labels, and the human labels of the training texts."""
    folder = Path(data) / "text"
    train = _rows(folder / "noisy_ag_news_10k.csv")[:train_size]
    test = _rows(folder / "noisy_ag_news_test.csv")[:test_size]
    dataset = Dataset(
        tuple(row["text"] for row in train),
        _classes([int(row["gt"]) for row in train]),
        tuple(row["text"] for row in test),
        _classes([int(row["gt"]) for row in test]),
        AG_NEWS,
    )
    return dataset, _classes([int(row["label"]) for row in train])


def trec(data: Path) -> Dataset:
    """Question types of TREC, 6 classes; 5452 training and 500 test questions."""
    parts = []
    for name in ("train", "test"):
        text = (Path(data) / "text" / f"trec_{name}.txt").read_text(encoding="utf-8")
        lines = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
        parts += [tuple(words for _, words in lines), _classes([int(label) for label, _ in lines])]
    return Dataset(*parts, classes=TREC)


def pneumonia(data: Path, train_size: int | None = None, seed: int = 0) -> Dataset:
    """Chest X-rays of PneumoniaMNIST, 28 x 28, one in ten normal; 3882 training and 624 test images.

    The files are sorted by class: a part of the training images is drawn at random.
    """
    parts = []
    with np.load(Path(data) / "pneumonia" / "pneumoniamnist.npz") as file:
        for name, size in (("train", train_size), ("test", None)):
            images, labels = file[f"{name}_images"], file[f"{name}_labels"].ravel()
            if size is not None:
                chosen = np.random.default_rng(seed).permutation(len(labels))[:size]
                images, labels = images[chosen], labels[chosen]
            parts += [_scale(images.reshape(-1, 1, 28, 28) / 255.0), _classes(labels)]
    return Dataset(*parts, classes=PNEUMONIA)


def banking77(data: Path, train_size: int | None = None, seed: int = 0) -> Dataset:
    """Questions to a bank, 77 intents; a random part of the training questions, or all in order."""
    train, test = (
        _rows(Path(data) / "text" / f"banking77_{name}.csv") for name in ("train", "test")
    )
    classes = tuple(sorted({row["category"] for row in train}))
    if train_size is not None:
        chosen = np.random.default_rng(seed).permutation(len(train))[:train_size]
        train = [train[i] for i in chosen]
    parts = []
    for rows in (train, test):
        labels = _classes([classes.index(row["category"]) for row in rows])
        parts += [tuple(row["text"] for row in rows), labels]
    return Dataset(*parts, classes=classes)


def word_weights(texts: Sequence[str], size: int = 2000, scale: float = 10.0) -> Tensor:
    """TF-IDF of the most frequent words (N, size), enlarged so that SGD at a common rate moves."""
    found = TfidfVectorizer(max_features=size, sublinear_tf=True, min_df=2).fit_transform(texts)
    return torch.tensor(scale * found.toarray(), dtype=torch.float32)


def friedman(size: int = 1500, noise: float = 0.5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Friedman's first regression problem: inputs (N, 10) and targets (N, 1), standardized."""
    return _standardized(*make_friedman1(size, noise=noise, random_state=seed))


def diabetes() -> tuple[Tensor, Tensor]:
    """Progress of diabetes of scikit-learn: inputs (442, 10) and targets (442, 1), standardized."""
    return _standardized(*load_diabetes(return_X_y=True))


def digit_properties() -> tuple[Tensor, Tensor]:
    """All digits of scikit-learn, flat and centered (1797, 64), and five properties (1797, 5), 0 or 1."""
    pixels, digit = load_digits(return_X_y=True)
    inputs = pixels / 16 - (pixels / 16).mean(0)
    true = [
        digit % 2 == 0,
        digit >= 5,
        np.isin(digit, (2, 3, 5, 7)),
        np.isin(digit, (0, 6, 8, 9)),
        digit % 3 == 0,
    ]
    targets = np.stack(true, 1)
    return torch.tensor(inputs, dtype=torch.float32), torch.tensor(targets, dtype=torch.float32)


def vocabulary(texts: Sequence[str], size: int = 1000) -> dict[str, int]:
    """Most frequent words, numbered from 2: 0 is padding and 1 any other word."""
    counts = Counter(word for text in texts for word in text.lower().split())
    return {word: rank + 2 for rank, (word, _) in enumerate(counts.most_common(size - 2))}


def tokens(texts: Sequence[str], words: dict[str, int], length: int = 64) -> Tensor:
    """Word indices (N, length), int64, cut or padded with 0 on the right."""
    indices = torch.zeros(len(texts), length, dtype=torch.int64)
    for row, text in enumerate(texts):
        known = [words.get(word, 1) for word in text.lower().split()[:length]]
        indices[row, : len(known)] = torch.tensor(known)
    return indices


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _standardized(inputs: np.ndarray, targets: np.ndarray) -> tuple[Tensor, Tensor]:
    inputs, targets = ((rows - rows.mean(0)) / rows.std(0) for rows in (inputs, targets[:, None]))
    return torch.tensor(inputs, dtype=torch.float32), torch.tensor(targets, dtype=torch.float32)


def _decode(stream: np.ndarray) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(stream.tobytes())).convert("RGB"))


def _scale(images: np.ndarray) -> Tensor:
    return torch.tensor((images - 0.5) / 0.25, dtype=torch.float32)


def _classes(labels: Sequence[int] | np.ndarray) -> Tensor:
    return torch.tensor(np.asarray(labels, dtype=np.int64))
