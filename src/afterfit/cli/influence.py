"""``afterfit influence``: which training samples predictions rest on."""

from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Annotated, Any

import torch
import typer
from rich.table import Table
from rich.text import Text
from safetensors.torch import load_file

from afterfit.cli.console import Factory, Out, Seed, Threads, console, set_threads
from afterfit.cli.factory import load_trained
from afterfit.influence.arnoldi import ArnoldiInfluence
from afterfit.influence.classic import InfluenceFunction
from afterfit.influence.datainf import DataInf
from afterfit.influence.ekfac import EKFACInfluence
from afterfit.influence.gex import GEX
from afterfit.influence.hybrid import HybridInfluence
from afterfit.influence.projected import RandomProjection
from afterfit.influence.tracin import GradientDot, TracIn
from afterfit.typing import Params
from afterfit.workflows.influence_run import Explanation, run_influence
from afterfit.workflows.run import Run

METHODS: dict[str, Callable[[float, int, int, list[Params]], Any]] = {
    "gex": lambda _, members, seed, __: GEX(members=members, seed=seed),
    "influence-function": lambda damping, *_: InfluenceFunction(damping),
    "ekfac": lambda damping, *_: EKFACInfluence(damping),
    "hybrid": lambda damping, _, seed, __: HybridInfluence(InfluenceFunction(damping), seed=seed),
    "datainf": lambda damping, *_: DataInf(damping),
    "arnoldi": lambda damping, _, seed, __: ArnoldiInfluence(damping=damping, seed=seed),
    "graddot": lambda *_: GradientDot(),
    "projection": lambda _, __, seed, ___: RandomProjection(512, seed),
    "tracin": lambda _, __, ___, checkpoints: TracIn(checkpoints),
}
"""How each method is made from damping, members, seed and checkpoints; a new one is one line."""

_DAMPED = ("influence-function", "ekfac", "hybrid", "datainf", "arnoldi")
_MEMBERS = ("gex",)


def influence(
    factory: Factory,
    out: Out = Path("runs/influence"),
    query: Annotated[
        str, typer.Option(help="Positions in the held-out data, such as 0,3,7 or 0-4.")
    ] = "0",
    method: Annotated[str, typer.Option(help=f"One of {', '.join(METHODS)}.")] = "gex",
    top: Annotated[int, typer.Option(help="Proponents and opponents of each query.")] = 5,
    damping: Annotated[
        float | None,
        typer.Option(help=f"Of the mean curvature ({', '.join(_DAMPED)}; by default 0.01)."),
    ] = None,
    members: Annotated[
        int | None, typer.Option(help="Members of the ensemble (gex; by default 8).")
    ] = None,
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(help="State dict saved in training, .safetensors or .pt; tracin, repeated."),
    ] = None,
    seed: Seed = 0,
    threads: Threads = 0,
) -> None:
    """Name the training samples that chosen predictions rest on, and write a report."""
    set_threads(threads)
    if method not in METHODS:
        message = f"--method is '{method}', expected {', '.join(METHODS)}"
        raise ValueError(message)
    _require_used(method, damping, members, checkpoint)
    positions = _positions(query)
    if top < 1:
        message = f"--top is {top}, expected at least 1"
        raise ValueError(message)
    states = [_state(path) for path in checkpoint or []]
    made = METHODS[method](
        0.01 if damping is None else damping, 8 if members is None else members, seed, states
    )
    run = run_influence(
        load_trained(factory), out, positions, made, num=top, name=method,
        title=f"Influence in {factory}",
    )  # fmt: skip
    _tell(run)


def _require_used(
    method: str, damping: float | None, members: int | None, checkpoint: list[Path] | None
) -> None:
    """Refuse an option that the method would ignore, and a method without what it needs."""
    for name, given, takers in (
        ("--damping", damping, _DAMPED),
        ("--members", members, _MEMBERS),
        ("--checkpoint", checkpoint or None, ("tracin",)),
    ):
        if given is not None and method not in takers:
            message = f"{name} is for {' and '.join(takers)}, and --method is '{method}'"
            raise ValueError(message)
    if method == "tracin" and not checkpoint:
        message = (
            "--method tracin has no --checkpoint, expected at least one state dict saved in "
            "training; graddot needs none"
        )
        raise ValueError(message)


def _positions(text: str) -> list[int]:
    """Read '0,3,7' or '0-4'."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            message = f"--query is '{text}', expected positions such as 0,3,7 or 0-4"
            raise ValueError(message)
        found += range(int(first), int(last if dash else first) + 1)
    return list(dict.fromkeys(found))


def _state(path: Path) -> Params:
    """A state dict; nothing is unpickled but tensors."""
    if path.suffix == ".safetensors":
        return load_file(path)
    try:
        state: Any = torch.load(path, weights_only=True, map_location="cpu")
    except (RuntimeError, EOFError, ValueError, UnpicklingError):
        message = (
            f"{path} cannot be read as a state dict of tensors, expected what "
            "torch.save(module.state_dict(), path) writes, or safetensors"
        )
        raise ValueError(message) from None
    return state


def _tell(run: Run[Explanation]) -> None:
    """Print who speaks for and against each query, and where the report is."""
    table = Table(title="what predictions rest on")
    columns = ("query", "kind", "rank", "id", "target", "score", "± stderr")
    for column in columns:
        table.add_column(column, justify="left" if column == "kind" else "right")
    for row in run.found.table.to_dict("records"):
        error = "" if row["stderr"] != row["stderr"] else f"{row['stderr']:.2g}"
        cells = (row["query"], row["kind"], row["rank"], row["id"], row["target"])
        table.add_row(*(str(cell) for cell in cells), f"{row['score']:.3g}", error)
    console.print(table)
    certain = run.found.table["certain"].dropna()
    if len(certain) and float(certain.mean()) < 0.5:
        told = "most of these scores lie within two standard errors of zero; raise --members"
        console.print(Text.assemble(("caution: ", "yellow"), told), soft_wrap=True)
    console.print(f"report: {run.report}", soft_wrap=True)
