"""Files of users: where they are found, what they may contain, and how their errors are told."""

import os
import pickle
import sys
from pathlib import Path

import pytest
import torch

from afterfit.cli.factory import FactoryError, load_trained
from afterfit.workflows import Trained

BODY = """    net = torch.nn.Linear(2, 2)
    return Trained(net, (torch.ones(4, 2), torch.arange(4) % 2), classes=("a", "b"))
"""
HEAD = "import torch\nfrom afterfit import Trained\n"


def write(folder: Path, text: str, name: str = "mine.py") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_file_or_a_function_of_it_is_called(tmp_path: Path):
    path = write(tmp_path, f"{HEAD}\ndef factory():\n{BODY}\ndef other():\n    return factory()\n")
    for spec in (str(path), f"{path}:factory", f"{path}:other"):
        found = load_trained(spec)
        assert isinstance(found, Trained)
        assert found.classes == ("a", "b")
        assert found.batches().num_samples == 4


def test_a_path_from_here_names_the_line_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path, "def factory():\n\n    raise RuntimeError('my data is gone')\n")
    monkeypatch.chdir(tmp_path)
    for spec in ("mine.py", os.path.join(".", "mine.py:factory")):
        with pytest.raises(FactoryError, match="line 3: RuntimeError: my data is gone"):
            load_trained(spec)


def test_the_line_is_the_users_where_the_library_refuses(tmp_path: Path):
    text = f"{HEAD}\ndef factory():\n    net = torch.nn.Linear(2, 2)\n    net(torch.ones(3))\n"
    with pytest.raises(FactoryError, match=r"mine\.py, line 6: RuntimeError"):
        load_trained(str(write(tmp_path, text)))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def factory(:\n", "SyntaxError"),
        (
            "import nowhere_at_all\n",
            "line 1: ModuleNotFoundError: No module named 'nowhere_at_all'",
        ),
        ("x = 1\n", "has no function 'factory'; write 'def factory"),
        ("factory = 3\n", "has no function 'factory'"),
        (
            "def factory():\n    pass\n",
            r"factory\(\) returned a NoneType, expected afterfit.Trained",
        ),
        ("def factory():\n    return 1, 2\n", "returned a tuple"),
        ("def factory(size):\n    pass\n", "missing 1 required positional argument: 'size'"),
    ],
)
def test_files_that_cannot_be_used_are_told_in_one_line(text: str, said: str, tmp_path: Path):
    with pytest.raises(FactoryError, match=said) as refused:
        load_trained(str(write(tmp_path, text)))
    assert "mine.py" in str(refused.value)


def test_a_missing_file_is_told(tmp_path: Path):
    for spec in (f"{tmp_path}/none.py", f"{tmp_path}/none.py:make", str(tmp_path)):
        with pytest.raises(FactoryError, match="does not exist, expected a Python file"):
            load_trained(spec)


def test_files_beside_it_can_be_imported_also_by_the_function(tmp_path: Path):
    write(tmp_path, "classes = ('one', 'two')\n", "my_first_names.py")
    write(tmp_path, "epochs = 7.0\n", "my_later_numbers.py")
    text = (
        f"{HEAD}from dataclasses import replace\nfrom my_first_names import classes\n"
        f"def plain():\n{BODY}\n"
        "def factory():\n    from my_later_numbers import epochs\n"
        "    return replace(plain(), classes=classes, epochs=epochs)\n"
    )
    before = list(sys.path)
    found = load_trained(str(write(tmp_path, text)))
    assert (found.classes, found.epochs) == (("one", "two"), 7.0)
    assert sys.path == before


def test_its_classes_can_be_dataclasses_with_late_annotations_and_be_pickled(tmp_path: Path):
    text = (
        f"from __future__ import annotations\nfrom dataclasses import dataclass\n{HEAD}\n"
        "@dataclass\nclass Row:\n    x: int\n    def __getitem__(self, i): return i\n\n"
        "class Net(torch.nn.Linear):\n    pass\n\n"
        "def factory():\n    net = Net(2, 2)\n"
        "    return Trained(net, (torch.ones(Row(4).x, 2), torch.arange(4) % 2))\n"
    )
    found = load_trained(str(write(tmp_path, text)))
    assert torch.equal(pickle.loads(pickle.dumps(found.module)).weight, found.module.weight)
