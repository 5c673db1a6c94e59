"""Hears what the library tells to its logger."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class _Ear(logging.Handler):
    def __init__(self, hear: Callable[[str], None]) -> None:
        logging.Handler.__init__(self)
        self._hear = hear

    def emit(self, record: logging.LogRecord) -> None:
        self._hear(record.getMessage())


@contextmanager
def heard_by(hear: Callable[[str], None]) -> Iterator[None]:
    """Give every line of progress to a function; what it raises ends the work."""
    logger, ear = logging.getLogger("afterfit"), _Ear(hear)
    level = logger.level
    logger.addHandler(ear)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(ear)
        logger.setLevel(level)
