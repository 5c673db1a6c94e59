"""Reads the user's factory file: Python that returns the trained network and its data."""

import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from afterfit.workflows.trained import Trained

T = TypeVar("T")


class FactoryError(Exception):
    """The factory file cannot be used; the message says where and why."""


def load_trained(spec: str) -> Trained:
    """Call the factory of a trained network with its data."""
    return load(spec, Trained, "afterfit.Trained(module, train, ...)")


def load(spec: str, kind: type[T], expected: str) -> T:
    """Call the factory named ``path/to/file.py`` or ``path/to/file.py:function``.

    Parameters
    ----------
    kind, expected
        What it must return, as a class and in words.

    Raises
    ------
    FactoryError
        If the file is missing or fails, has no such function, or returns something else.
    """
    path_text, _, name = spec.partition(".py:")
    path = Path(path_text + ".py" if name else spec)
    name = name or "factory"
    if not path.is_file():
        message = f"{path} does not exist, expected a Python file with a function '{name}'"
        raise FactoryError(message)
    sys.path.insert(0, str(path.resolve().parent))  # as if the file were run
    try:
        returned = _returned(path, name)
    finally:
        sys.path.remove(str(path.resolve().parent))
    if not isinstance(returned, kind):
        message = f"{path}: {name}() returned a {type(returned).__name__}, expected {expected}"
        raise FactoryError(message)
    return returned


def _returned(path: Path, name: str) -> Any:
    try:
        module = _imported(path)
        function = getattr(module, name, None)
        if callable(function):
            return function()
    except FactoryError:
        raise
    except Exception as error:
        raise FactoryError(_told(error, path)) from error
    message = f"{path} has no function '{name}'; write 'def {name}(): ... return Trained(...)'"
    raise FactoryError(message)


def _imported(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"factory_{path.stem}", path.resolve())
    if spec is None or spec.loader is None:
        message = f"{path} cannot be imported as Python"
        raise FactoryError(message)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look there
    spec.loader.exec_module(module)
    return module


def _told(error: Exception, path: Path) -> str:
    """Name the line of the user's file, not of ours."""
    own = path.resolve()
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == own]
    where = f"{path}, line {frames[-1].lineno}" if frames else str(path)
    return f"{where}: {type(error).__name__}: {error}"
