"""The command line that the scripts share."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch


def parser_of(
    doc: str | None, datasets: Sequence[str], seeds: int | None = None
) -> argparse.ArgumentParser:
    """``run`` or ``table``, the folder of the data, the data sets, and how many seeds or splits."""
    parser = argparse.ArgumentParser(description=(doc or "").split("\n")[0])
    parser.add_argument("command", choices=["run", "table"])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--datasets", nargs="+", default=list(datasets))
    if seeds is not None:
        parser.add_argument("--seeds", type=int, default=seeds)
    torch.set_num_threads(1)
    return parser


def options_of(
    doc: str | None, datasets: Sequence[str], seeds: int | None = None
) -> argparse.Namespace:
    """Parse the shared options alone."""
    return parser_of(doc, datasets, seeds).parse_args()
