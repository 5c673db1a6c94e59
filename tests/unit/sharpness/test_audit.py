import pytest
import torch
from torch import Generator, nn

from afterfit.linalg import Estimate
from afterfit.problem import Batches, Categorical
from afterfit.sharpness import (
    MEASURES,
    Sharpness,
    audit,
    connectivity_curvature,
    fisher_trace,
    relative_flatness,
    squared_norm,
)
from tests.laws.test_influence_laws import require_untouched
from tests.rescalable import NETWORKS

HEADS = {"mlp": "4.weight", "conv-bn": "8.weight", "vit": "head.weight", "gpt": "head.weight"}


def audited(name: str, measures=None, **settings):
    case = NETWORKS[name]
    return audit(case.module(), Categorical(), case.data(), measures, num_draws=1, **settings)


@pytest.mark.parametrize("name", ["mlp", "conv-bn", "gpt"])
def test_the_audit_tells_what_can_be_faked_and_sees_every_claim_kept(name: str):
    measures = {
        **MEASURES,
        "connectivity curvature": connectivity_curvature,
        "Fisher trace": fisher_trace,
        "relative flatness": lambda p, d: relative_flatness(p, d, HEADS[name]),
    }
    found = audited(name, measures)
    assert found.broken == ()
    assert set(found.moves.columns) == NETWORKS[name].kinds
    faked = found.can_be_faked
    for measure in ("connectivity sharpness", "connectivity curvature", "Fisher-Rao norm"):
        assert not faked[measure]
    for measure in ("tangent trace", "Fisher trace", "squared norm"):
        assert faked[measure]
    assert "connectivity sharpness" in str(found)


def test_a_claim_that_does_not_hold_is_told():
    def boastful(problem, data):
        return Sharpness("norm", squared_norm(problem, data).total, 1, frozenset({"layer"}))

    found = audited("mlp", {"boastful": boastful})
    assert len(found.broken) == 1
    assert "boastful claims to be invariant to 'layer' and moved by" in found.broken[0]


def test_numbers_estimates_and_tensors_are_all_audited():
    measures = {
        "number": lambda p, d: float(squared_norm(p, d).total),
        "estimate": lambda p, d: Estimate(squared_norm(p, d).total, 0.1, 3),
        "tensor": lambda p, d: torch.stack([v.sum() for v in p.params.values()]),
        "constant": lambda p, d: 1.0,
    }
    found = audited("mlp", measures)
    assert found.moves.loc["number", "node"] == found.moves.loc["estimate", "node"] > 0.01
    assert found.moves.loc["tensor", "node"] > 0.01
    assert found.moves.loc["constant"].max() == 0
    assert found.broken == ()


def test_a_wider_spread_moves_more_and_the_seed_reproduces():
    narrow, wide, again = (audited("mlp", spread=spread) for spread in (0.1, 2, 2))
    assert (narrow.moves.loc["squared norm"] <= wide.moves.loc["squared norm"]).all()
    assert wide.moves.equals(again.moves)


def test_a_network_in_single_precision_is_audited_in_double():
    case = NETWORKS["conv-bn"]
    inputs = case.data().fetch(torch.arange(24)).inputs.float()
    data = Batches((inputs, torch.arange(24) % 3))
    found = audit(case.module().float(), Categorical(), data, num_draws=1)
    assert found.moves.loc["connectivity sharpness"].max() < 1e-10


def test_the_users_module_is_not_touched():
    module = NETWORKS["conv-bn"].module().train()
    data = NETWORKS["conv-bn"].data()
    require_untouched(module, lambda: audit(module, Categorical(), data, num_draws=1))


def test_a_network_without_freedom_and_a_measure_without_a_number_are_refused(
    generator: Generator,
):
    data = Batches((torch.randn(20, 3, generator=generator), torch.arange(20) % 3))
    with pytest.raises(ValueError, match="preserves this network's function"):
        audit(nn.Linear(3, 3), Categorical(), data)
    with pytest.raises(ValueError, match="'bad' gave nan"):
        audited("mlp", {"bad": lambda p, d: float("nan")})
