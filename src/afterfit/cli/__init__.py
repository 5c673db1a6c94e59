"""The command line."""

from afterfit.cli.app import main

__all__ = ["main"]
