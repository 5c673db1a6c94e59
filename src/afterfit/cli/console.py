"""What the commands share: where they write, how they tell, and options of the same meaning."""

import logging
from pathlib import Path
from typing import Annotated, final

import torch
import typer
from rich.console import Console
from rich.text import Text

console = Console(highlight=False, markup=False)  # identifiers may hold brackets
errors = Console(stderr=True, highlight=False, markup=False)

Out = Annotated[Path, typer.Option(help="Folder of the run; a run that was killed goes on.")]
Folder = Annotated[Path, typer.Option(help="Folder of the run.")]
Seed = Annotated[int, typer.Option(help="Of everything that is drawn.")]
Threads = Annotated[int, typer.Option(help="CPU threads; 0 leaves torch's choice.")]
Factory = Annotated[
    str, typer.Argument(help="FILE.py or FILE.py:FUNCTION, returning afterfit.Trained(...).")
]


def set_threads(threads: int) -> None:
    """Set the number of CPU threads, or leave torch's choice."""
    if threads < 0:
        message = f"--threads is {threads}, expected 0 or more"
        raise ValueError(message)
    if threads:
        torch.set_num_threads(threads)


@final
class Progress(logging.Handler):
    """Shows on the terminal how work goes on."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one line."""
        errors.print(Text(record.getMessage(), style="dim"))


def show_progress() -> None:
    """Show what the library tells to the logger ``afterfit``."""
    logger = logging.getLogger("afterfit")
    logger.handlers = [h for h in logger.handlers if not isinstance(h, Progress)] + [Progress()]
    logger.setLevel(logging.INFO)
