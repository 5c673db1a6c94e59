"""Run the command line with ``python -m afterfit``."""

from afterfit.cli import main

if __name__ == "__main__":
    main()
