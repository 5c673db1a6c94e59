# %% [markdown]
# # Wrong labels among texts
# Question types of TREC from the folder in `AFTERFIT_DATA` (`text/trec_train.txt`, a line is
# `<label> <words>`), or else made-up questions.
# `AFTERFIT_DATA=... afterfit labels examples/labels_text.py`.

# %%
import os
import random
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor, nn

import afterfit as af

CLASSES = ("description", "entity", "abbreviation", "human", "location", "number")
OPENINGS = (
    "what is a",
    "what kind of",
    "what does stand for",
    "who was the",
    "where is the",
    "how many",
)


# %%
def questions() -> tuple[list[str], Tensor]:
    """Texts and class indices."""
    if "AFTERFIT_DATA" in os.environ:
        text = (Path(os.environ["AFTERFIT_DATA"]) / "text" / "trec_train.txt").read_text()
        pairs = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
        return [words for _, words in pairs], torch.tensor([int(label) for label, _ in pairs])
    rng = random.Random(0)
    labels = [rng.randrange(6) for _ in range(600)]
    nouns = [f"noun{k}" for k in range(200)]
    return [f"{OPENINGS[k]} {rng.choice(nouns)} {rng.choice(nouns)}" for k in labels], torch.tensor(
        labels
    )


def padded(texts: list[str], length: int = 24, size: int = 2000) -> Tensor:
    """Word numbers (N, length); 0 is padding, 1 any rare word."""
    common = Counter(word for text in texts for word in text.split()).most_common(size)
    number = {word: k + 2 for k, (word, _) in enumerate(common)}
    rows = [[number.get(word, 1) for word in text.split()][:length] for text in texts]
    return torch.tensor([row + [0] * (length - len(row)) for row in rows])


class BagOfEmbeddings(nn.Module):
    """The mean of the words' embeddings, then a linear layer."""

    def __init__(self, size: int = 2002, width: int = 64) -> None:
        nn.Module.__init__(self)
        self.words = nn.Embedding(size, width, padding_idx=0)
        self.head = nn.Linear(width, len(CLASSES))

    def forward(self, numbers: Tensor) -> Tensor:
        """Map word numbers (B, length) to class scores (B, 6)."""
        count = (numbers != 0).sum(1, keepdim=True).clamp_min(1)
        return self.head(self.words(numbers).sum(1) / count)


# %%
def factory(epochs: int = 30) -> af.Trained:
    """A bag of embeddings trained on questions of which a tenth has the wrong type."""
    torch.manual_seed(0)
    texts, clean = questions()
    wrong = torch.rand(len(clean)) < 0.1
    labels = torch.where(wrong, (clean + torch.randint(1, 6, clean.shape)) % 6, clean)
    net, data = BagOfEmbeddings(), af.Batches((padded(texts), labels))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    steps = epochs * len(labels) // 128
    for _, (_, x, y) in zip(range(steps), af.TrainingStream(data, 128).batches(0), strict=False):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    show = lambda i: texts[i]  # noqa: E731
    return af.Trained(net, data, classes=CLASSES, show=show, wrong=wrong, epochs=epochs)


# %%
if __name__ == "__main__":
    trained = factory()
    print(af.find_label_issues(trained.problem(), trained.batches()).head(10))
