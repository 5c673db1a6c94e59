"""What README and the first page show as code is run as it stands, on networks made here."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import afterfit as af

ROOT = Path(__file__).parents[2]
SHOWN = ("README.md", "docs/index.md", "docs/questions/influence.md")


def names() -> dict[str, object]:
    """What the text takes for granted: a network, its data, and how it is trained."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(100) % 2
    x = torch.randn(100, 3, generator=generator) + 2 * y[:, None]
    train_set, test_set = TensorDataset(x[:80], y[:80]), TensorDataset(x[80:], y[80:])

    def retrain(data: af.Batches, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        for _ in range(20):
            optimizer.zero_grad()
            _, inputs, targets = data.fetch(torch.arange(data.num_samples))
            nn.functional.cross_entropy(net(inputs), targets).backward()
            optimizer.step()
        return net

    return {
        "net": retrain(af.Batches(train_set), 0),
        "train_set": train_set,
        "test_set": test_set,
        "augmented_loader": DataLoader(train_set, batch_size=20, shuffle=True),
        "retrain": retrain,
    }


@pytest.mark.parametrize("page", SHOWN)
@pytest.mark.filterwarnings("ignore")  # so small a network warns of its size, not of the text
def test_code_that_is_shown_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.S | re.M)
    assert blocks
    monkeypatch.chdir(tmp_path)
    space = names()
    for block in blocks:
        exec(compile(block, page, "exec"), space)


def test_commands_that_are_shown_exist():
    text = (ROOT / "README.md").read_text()
    for command, factory in re.findall(r"^afterfit (\w+) (\S+\.py)", text, re.M):
        assert (ROOT / factory).is_file()
        assert re.search(
            rf"command.*{command}|def {command}\(", (ROOT / "src/afterfit/cli/app.py").read_text()
        )
