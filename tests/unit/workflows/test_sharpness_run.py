"""Runs over sharpness, audit and uncertainty: their numbers, files and pages."""

import json
import tomllib
from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch import Generator, nn

from afterfit.curvature import jacobian
from afterfit.problem import Batches, Categorical, Gaussian, Problem, connectivity
from afterfit.sharpness import connectivity_sharpness
from afterfit.workflows import Trained
from afterfit.workflows.audit_run import run_audit
from afterfit.workflows.calibrate import calibrate
from afterfit.workflows.predictors import trained_network as as_trained
from afterfit.workflows.sharpness_run import run_sharpness
from afterfit.workflows.uncertainty_run import _reliability_section, run_uncertainty
from tests.elsewhere import Elsewhere


def trained(likelihood=None) -> Trained:
    """A ReLU network with a normalization, fitted a little, with held-out data."""
    generator = Generator().manual_seed(0)
    x = torch.randn(80, 4, generator=generator)
    y = (x[:, 0] + x[:, 1] > 0).long()
    target = y if likelihood is None else x[:, :2].sum(1, keepdim=True)
    torch.manual_seed(0)
    last = nn.Linear(6, 2 if likelihood is None else 1)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), last)
    optimizer = torch.optim.Adam(net.parameters(), 0.05)
    loss = nn.functional.cross_entropy if likelihood is None else nn.functional.mse_loss
    for _ in range(40):
        optimizer.zero_grad()
        loss(net(x[:50]), target[:50]).backward()
        optimizer.step()
    return Trained(
        net, (x[:50], target[:50]), Categorical() if likelihood is None else likelihood,
        test=(x[50:], target[50:]),
    )  # fmt: skip


def test_sharpness_of_a_run_is_that_of_the_jacobian(tmp_path):
    given = trained()
    run = run_sharpness(given, tmp_path)
    rows = jacobian(connectivity(given.problem()), given.batches()).to_dense()
    result = json.loads((tmp_path / "result.json").read_text())
    expected = float(rows.square().sum()) / 50
    assert result["measures"]["connectivity sharpness"] == pytest.approx(expected, rel=1e-5)
    assert sum(result["shares"].values()) == pytest.approx(1)
    assert result["eigenvalues"] == sorted(result["eigenvalues"], reverse=True)
    assert 0 < result["gibbs_risk"] < result["bound"] <= 1
    assert len(pd.read_csv(tmp_path / "measures.csv")) == len(run.found.measures)
    assert "connectivity sharpness" in run.report.read_text()
    settings = tomllib.loads((tmp_path / "run.toml").read_text())
    assert settings["sharpness"] == {"samples": 1000, "seed": 0}
    assert settings["input"]["samples"] == 50


def test_without_held_out_classes_nothing_is_bounded(tmp_path):
    run = run_sharpness(replace(trained(), test=None), tmp_path)
    assert run.found.certificate is None
    numbers = run_sharpness(trained(Gaussian()), tmp_path)
    assert numbers.found.certificate is None
    assert "normalized connectivity sharpness" not in {m.name for m in numbers.found.measures}


def test_an_audit_tells_the_invariant_measures_from_the_others(tmp_path):
    given = trained()
    before = {name: value.clone() for name, value in given.module.state_dict().items()}
    run = run_audit(given, tmp_path, samples=20)
    faked = run.found.can_be_faked
    assert not faked["connectivity sharpness"]
    assert faked["tangent trace"]
    assert run.found.broken == ()
    after = given.module.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert "layer" in pd.read_csv(tmp_path / "moves.csv").columns
    assert {"result.json", "run.toml", "report.html"} < {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("likelihood", [None, Gaussian(0.5)], ids=["classes", "numbers"])
def test_ways_to_predict_are_compared_and_predictions_written(likelihood, tmp_path):
    run = run_uncertainty(trained(likelihood), tmp_path)
    table = run.found.table
    assert list(table["nll"]) == sorted(table["nll"])
    assert {"MAP", "LL", "CL"} <= set(table.index)
    predictions = pd.read_csv(tmp_path / "predictions.csv")
    assert len(predictions) == 15
    assert predictions["epistemic_share"].between(0, 1).all()
    page = run.report.read_text()
    assert page.count("<svg") == (2 if likelihood is None else 1)
    written = json.loads((tmp_path / "result.json").read_text())
    assert written["best"] == run.found.best
    assert "held_out" in tomllib.loads((tmp_path / "run.toml").read_text())["input"]


def test_rescaled_networks_have_the_same_bands_in_relative_coordinates():
    from afterfit.workflows.uncertainty_run import rescaled_bands

    given = trained()
    data = given.held_out()
    assert data is not None
    bands = rescaled_bands(given, given.batches(), data, seed=0)
    widths = {
        kind: [torch.tensor(band.high - band.low) for band in named.values()]
        for kind, named in bands.items()
    }
    first, *others = widths["connectivity"]
    assert all(torch.allclose(first, other, rtol=1e-8) for other in others)
    first, *others = widths["Euclidean"]
    assert all(float(((other - first) / first).abs().max()) > 0.01 for other in others)


def test_reliability_is_found_wherever_the_targets_are(monkeypatch):
    test = trained().held_out()
    found = calibrate(trained().problem(), trained().batches(), test, None, {"MAP": as_trained})
    expected = _reliability_section(found, test)
    targets = test.targets().as_subclass(Elsewhere)
    monkeypatch.setattr(Batches, "targets", lambda self: targets)
    assert _reliability_section(found, test) == expected


def test_without_held_out_data_there_is_nothing_to_choose_by(tmp_path):
    with pytest.raises(ValueError, match=r"no held-out data.*test=data"):
        run_uncertainty(replace(trained(), test=None), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_measures_of_a_run_do_not_depend_on_the_scaling(tmp_path):
    given = trained()
    net = given.module
    with torch.no_grad():
        net[0].weight.mul_(8)
        net[0].bias.mul_(8)
        net[2].weight.div_(8)
    again = trained()
    one = connectivity_sharpness(Problem.from_module(net, Categorical()), given.batches())
    other = connectivity_sharpness(again.problem(), again.batches())
    assert one.total == pytest.approx(other.total, rel=1e-6)
