"""A run that asks how sure a network is: ways to predict compared, and what a rescaling does."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Generator, Tensor

from afterfit.curvature import diagonal
from afterfit.evaluate import reliability
from afterfit.posterior import Predictive, laplace, predict
from afterfit.problem.data import Batches
from afterfit.problem.folder import alone_in_folder
from afterfit.problem.problem import Problem
from afterfit.problem.transform import connectivity
from afterfit.report import Band, Page, Section, band_plot, reliability_plot
from afterfit.sharpness import ChangeKind, explore
from afterfit.sharpness.architecture import in_double
from afterfit.workflows.calibrate import Calibration, calibrate
from afterfit.workflows.citations import CONNECTIVITY
from afterfit.workflows.predictors import Candidate
from afterfit.workflows.run import Run, inputs, write_run
from afterfit.workflows.trained import Trained

_log = logging.getLogger(__name__)

RESCALED: tuple[ChangeKind, ...] = ("layer", "node", "normalization", "affine")
"""Kinds of changes that are pictured, the first that the network admits."""

SHOWN = 80
"""Samples in the picture of rescaled networks."""

SPREAD = 1.0
"""Standard deviation of the logarithm of the factors by which they are rescaled."""


@alone_in_folder
def run_uncertainty(
    trained: Trained,
    folder: Path,
    *,
    samples: int = 2000,
    candidates: Mapping[str, Candidate] | None = None,
    seed: int = 0,
    title: str = "Uncertainty report",
) -> Run[Calibration]:
    """Tune and compare ways to predict on one half of the held-out data, and report on the other.

    The folder gets ``ways.csv`` and ``predictions.csv``.

    Parameters
    ----------
    samples
        So many training samples, drawn at random, carry the curvature.

    Raises
    ------
    ValueError
        If the factory gives no held-out data.
    """
    held_out = trained.held_out()
    if held_out is None:
        message = (
            "the factory gives no held-out data, expected some to choose a way to predict by: "
            "return afterfit.Trained(..., test=data)"
        )
        raise ValueError(message)
    problem, train = trained.problem(), trained.batches().drawn(samples, seed)
    order = torch.randperm(held_out.num_samples, generator=Generator().manual_seed(seed))
    half = (held_out.num_samples + 1) // 2
    validation, test = (
        held_out.subset(part.sort().values) for part in (order[:half], order[half:])
    )
    num, other = validation.num_samples, test.num_samples
    _log.info(f"tuning on {num:,} held-out samples, reporting on {other:,}")
    calibration = calibrate(problem, train, validation, test, candidates)
    _log.info("rescaling the network")
    bands = rescaled_bands(trained, train, test, seed)
    ways = calibration.table.rename_axis("way").reset_index()
    return write_run(
        folder,
        calibration,
        _page(title, calibration, ways, test, bands, problem),
        figures={"best": calibration.best, "ways": json.loads(ways.to_json(orient="records"))},
        settings={
            "uncertainty": {"samples": samples, "seed": seed, "ways": ", ".join(ways["way"])},
            "input": {**inputs(problem, train), "held_out": held_out.fingerprint()},
        },
        tables={"ways": ways, "predictions": _predictions(calibration.predict(test), test)},
    )


Bands = dict[str, dict[str, Band]]


def rescaled_bands(
    trained: Trained, train: Batches, data: Batches, seed: int, shown: int = SHOWN
) -> Bands:
    """Laplace bands of the same function under three scalings, in both kinds of coordinates.

    Returns
    -------
    dict
        For ``"Euclidean"`` and ``"connectivity"``, by the name of the scaling, mean and two
        standard deviations of the largest output of each sample. Empty where the network admits no
        rescaling.
    """
    architecture = explore(trained.module, train, seed)
    kinds: list[ChangeKind] = [kind for kind in RESCALED if kind in architecture.kinds]
    if not kinds:
        return {}
    generator = Generator().manual_seed(seed)
    networks = {"as trained": architecture.network}
    for number in (1, 2):
        networks[f"rescaled, {number}"] = architecture.changed(kinds[0], SPREAD, generator)
    device = next(architecture.network.parameters()).device
    samples, asked = in_double(train, device), in_double(data.drawn(shown, seed), device)
    bands: Bands = {"Euclidean": {}, "connectivity": {}}
    scale = _typical_size(trained.problem())
    for name, network in networks.items():
        problem = Problem.from_module(network, trained.problem().likelihood)
        for coordinates, moved, prior in (
            ("Euclidean", problem, scale),
            ("connectivity", connectivity(problem), 1.0),
        ):
            found = predict(laplace(moved, samples, prior, diagonal), asked)
            bands[coordinates][name] = _band(found)
    return bands


def _typical_size(problem: Problem) -> float:
    """Root mean square of the parameters: the scale at which both kinds start out alike."""
    total = sum(float(p.double().square().sum()) for p in problem.params.values())
    return max(total / problem.num_params, 1e-12) ** 0.5


def _band(found: Predictive) -> Band:
    """The largest output of each sample, in rising order, with two standard deviations."""
    largest = found.logit_mean.argmax(1, keepdim=True)
    mean = found.logit_mean.gather(1, largest)[:, 0]
    std = found.logit_variance.gather(1, largest)[:, 0].sqrt()
    order = mean.argsort()
    mean, std = mean[order].cpu().numpy(), std[order].cpu().numpy()
    return Band(mean, mean - 2 * std, mean + 2 * std)


def _predictions(found: Predictive, data: Batches) -> pd.DataFrame:
    """One row a sample: what is expected, how unsure, and how much of that more data would take."""
    columns: dict[str, Any] = {"id": data.ids}
    for k in range(found.mean.shape[1]):
        columns[f"mean_{k}"] = found.mean[:, k].cpu().numpy()
    columns["uncertainty"] = found.uncertainty.cpu().numpy()
    columns["epistemic_share"] = found.epistemic_share.cpu().numpy()
    return pd.DataFrame(columns)


def _is_classes(problem: Problem, y: Tensor) -> bool:
    return "ece" in problem.likelihood.reported and y.ndim == 1


def _page(
    title: str,
    calibration: Calibration,
    ways: pd.DataFrame,
    test: Batches,
    bands: Bands,
    problem: Problem,
) -> Page:
    sections = [
        Section(
            "Ways to predict",
            text="Temperature, prior scales and rates were tuned on the first half of the held-out "
            "samples, which also chose the best way; columns that begin with test_ are of the "
            "second half. nll is the mean loss in nats.",
            table=ways,
        )
    ]
    if _is_classes(problem, test.targets()):
        sections.append(_reliability_section(calibration, test))
    if bands:
        sections.append(_band_section(bands))
    best = ways.iloc[0]
    return Page(
        title=title,
        lead=f"{calibration.best} predicts best on held-out data ({best['nll']:.4g} ± "
        f"{best['nll_stderr']:.2g} nats a sample; {best['test_nll']:.4g} on samples that nothing "
        "was tuned on).",
        sections=sections,
        facts=[
            ("Samples reported on", f"{test.num_samples:,}"),
            ("Ways compared", f"{len(ways)}"),
            ("Parameters that are zero", f"{connectivity(problem).num_frozen:,}"),
        ],
        methods="MAP: the network as it is. LL: linearized Laplace in its parameters. CL: the same "
        "in relative coordinates θ = θ̂ ⊙ (1 + c), which a rescaling of the network cannot change.",
        citation=CONNECTIVITY,
    )


def _reliability_section(calibration: Calibration, test: Batches) -> Section:
    curves = {}
    y = test.targets().cpu()
    for name in dict.fromkeys(("MAP", calibration.best)):
        if name not in calibration.predictors:
            continue
        probabilities = calibration.predictors[name].predict(test).probabilities.cpu()
        confidence, predicted = probabilities.max(1)
        found = reliability(confidence.clamp(0, 1), predicted == y)
        curves[name] = (found.confidence.cpu().numpy(), found.accuracy.cpu().numpy())
    return Section(
        "Is it right as often as it says?",
        figure=reliability_plot(curves),
        caption="Below the diagonal the network is too sure. Bins with few samples jump.",
    )


def _band_section(bands: Bands) -> Section:
    num = len(next(iter(next(iter(bands.values())).values())).mean)  # pyright: ignore[reportArgumentType]
    return Section(
        "The same function, rescaled",
        text="Three networks that compute the same function: as trained, and twice rescaled. Their "
        "uncertainty should be the same.",
        figure=band_plot(range(num), bands),
        caption="Largest output of held-out samples, in rising order, with two standard deviations "
        "by Laplace with the diagonal curvature.",
    )
