"""One run in a folder at a time: two would mix their members and overwrite their tables."""

import functools
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import get_ident
from typing import ParamSpec, TypeVar

try:
    import fcntl
except ImportError:  # there are no such locks on Windows, and runs are not told apart there
    fcntl = None

P = ParamSpec("P")
T = TypeVar("T")

_HELD: dict[Path, int] = {}
"""Folders that this process holds, and the thread that does."""


@contextmanager
def alone_in(folder: Path | str | None) -> Iterator[None]:
    """Hold a folder; a run within the run of the same thread holds it too.

    The system gives a lock back when its process ends, however it ends: what a killed run left
    behind is taken over, and nothing has to be removed by hand.

    Raises
    ------
    RuntimeError
        If another run holds the folder.
    """
    where = None if folder is None else Path(folder).resolve()
    if where is None or fcntl is None or _HELD.get(where) == get_ident():
        yield
        return
    is_new = not where.exists()
    where.mkdir(parents=True, exist_ok=True)
    handle = os.open(where, os.O_RDONLY)  # the folder itself is locked: no file is left in it
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            message = (
                f"another run is at work in the folder {where}, expected one at a time; wait for "
                "it, end it, or take another folder"
            )
            raise RuntimeError(message) from error
        _HELD[where] = get_ident()
        try:
            yield
        finally:
            del _HELD[where]
    finally:
        os.close(handle)
        if is_new and not any(where.iterdir()):  # the run was refused before it wrote anything
            where.rmdir()


def alone_in_folder(run: Callable[P, T]) -> Callable[P, T]:
    """Hold the argument `folder` of a function while it runs; it may be None."""
    signature = inspect.signature(run)

    @functools.wraps(run)
    def held(*args: P.args, **kwargs: P.kwargs) -> T:
        with alone_in(signature.bind(*args, **kwargs).arguments.get("folder")):
            return run(*args, **kwargs)

    return held
