"""Files that are either complete or not there at all."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import pandas as pd


def write_text_atomic(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text under a temporary name beside `path`, then rename.

    A reader sees the old file or the new one, never half of it; when writing fails, the old file
    stays.
    """
    with _replacing(Path(path)) as file:
        file.write(text)


def write_table_atomic(path: str | os.PathLike[str], table: pd.DataFrame) -> None:
    """Write a table as CSV without its row labels, under a temporary name first, then rename."""
    with _replacing(Path(path)) as file:
        table.to_csv(file, index=False, lineterminator="\n")


@contextmanager
def _replacing(path: Path) -> Iterator[TextIO]:
    """A file that takes the place of `path` once it is complete."""
    if not path.parent.is_dir():
        msg = (
            f"{path} cannot be written: {path.parent} is not a directory, expected an existing "
            "one: create it first"
        )
        raise FileNotFoundError(msg)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("x", encoding="utf-8", newline="") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
