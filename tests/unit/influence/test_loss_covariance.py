"""What can be asked of influence over members, and that all answers come from one kernel."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from afterfit.influence import (
    GEX,
    CovarianceInfluence,
    LossCovariance,
    covariance,
    level,
    mean_move,
    member_losses,
    secant,
    second_moment,
    seen_losses,
    tangents,
)
from afterfit.influence.base import Influence, InfluenceMethod
from afterfit.problem import MemberStore, TrainingStream
from afterfit.sampling import Checkpoints, GaussianDraws, GeometricEnsemble
from tests import truth
from tests.cases import Case, make_case
from tests.listening import heard_by

EXACT = {"rtol": 1e-11, "atol": 1e-12}
MOMENTS = (second_moment, covariance, mean_move)
every_moment = pytest.mark.parametrize("moment", MOMENTS)
WALK = GeometricEnsemble(members=5, steps=3, learning_rate=0.2, way="alone")


def case() -> Case:
    return make_case("batch-norm", "categorical")


def stream() -> TrainingStream:
    return TrainingStream(case().data, 7)


def fitted(**settings: Any) -> CovarianceInfluence:
    return LossCovariance(WALK, **settings).fit(case().problem, case().data, stream())


def kernel_by_hand(found: CovarianceInfluence, moment: Any) -> Tensor:
    """Moments of moves from the losses at each member, one member after another."""
    problem, data = case().problem, case().data
    columns = [
        truth.losses(replace(problem, params=member.params), data) for member in found.ensemble
    ]
    moves = torch.stack(columns, 1) - truth.losses(problem, data)[:, None]
    means, num = moves.mean(1), len(columns)
    return {
        second_moment: moves @ moves.T / num,
        covariance: torch.cov(moves),
        mean_move: torch.outer(means, means),
    }[moment]


@every_moment
@pytest.mark.parametrize("losses", ["members", "seen", "both"])
def test_scores_are_moments_of_losses_at_the_members(moment: Any, losses: Any):
    """What self-influence is recorded from does not change influence between samples."""
    found = fitted(cross_moment=moment, losses=losses)
    assert_close(found.scores(case().data), kernel_by_hand(found, moment), **EXACT)
    assert_close(found.block(torch.arange(7), torch.arange(7)), kernel_by_hand(found, moment))


@every_moment
def test_self_influence_is_the_diagonal_for_the_same_move_and_moment(moment: Any):
    for move in (secant, level):
        found = fitted(move=move, moment=moment, cross_move=move, cross_moment=moment)
        assert_close(found.self_scores(), found.scores(case().data).diagonal(), **EXACT)


def test_the_table_is_what_was_recorded():
    members, seen, both = (fitted(losses=losses) for losses in ("members", "seen", "both"))
    problem, data = case().problem, case().data
    at_members = member_losses(problem, data, members.ensemble).columns
    in_training = seen_losses(problem, data, members.ensemble).columns
    assert torch.equal(members.table.columns, at_members)
    assert torch.equal(seen.table.columns, in_training)
    assert torch.equal(both.table.columns, torch.cat([at_members, in_training], 1))
    for found in (members, seen, both):
        assert torch.equal(found.train_table().columns, at_members)
        assert torch.equal(found.train_table().units, members.table.units)


@every_moment
def test_blocks_groups_and_means_are_parts_and_sums_of_scores(moment: Any):
    found, data = fitted(cross_moment=moment, losses="both"), case().data
    query = data.subset(torch.tensor([5, 0, 2]))
    scores, own = found.scores(query), found.scores(data)
    rows, columns = torch.tensor([6, 1]), torch.tensor([0, 3, 3])
    assert_close(found.block(rows, columns), own[rows][:, columns], **EXACT)
    groups = [torch.tensor([0, 4]), torch.tensor([1]), torch.tensor([2, 3, 5, 6])]
    sums = torch.stack([scores[:, group].sum(1) for group in groups], 1)
    assert_close(found.group_scores(groups, query), sums, **EXACT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        assert_close(found.mean_scores(query), scores.mean(0), **EXACT)


def test_queries_may_be_asked_later_or_from_a_table_that_was_kept():
    found = fitted()
    query = case().data.subset(torch.tensor([5, 0, 2]))
    first, table = found.scores(query), found.observe(query)
    assert torch.equal(found.scores(query), first)
    assert torch.equal(found.scores(table), first)
    assert torch.equal(found.mean_scores(table), found.mean_scores(query))
    assert torch.equal(found.group_scores([torch.arange(2)], table), first[:, :2].sum(1)[:, None])


def drifting(towards: float) -> Checkpoints:
    """Checkpoints whose weights are those of the network times 0.5, or 1.5."""
    known = {**case().problem.params, **case().problem.buffers}
    states = [
        {n: v * (towards + 0.01 * i) if n.startswith("3.") else v for n, v in known.items()}
        for i in range(4)
    ]
    return Checkpoints(states)


def test_the_mean_of_a_second_moment_warns_where_the_members_fit_the_queries_worse():
    problem, data = case().problem, case().data
    told = {}
    for towards in (0.0, 0.5, 1.5, 3.0):
        method = LossCovariance(drifting(towards), cross_moment=second_moment)
        found = method.fit(problem, data)
        drift = float(secant(found.table).mean())
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found.mean_scores(data)
            replace(found, method=replace(method, cross_moment=covariance)).mean_scores(data)
        told[drift > 0] = [str(warning.message) for warning in caught]
    assert told[False] == []
    assert len(told[True]) == 1
    assert "use cross_moment=covariance" in told[True][0]


def test_extending_keeps_the_first_members_and_goes_on_from_the_last():
    found = fitted(losses="both")
    longer = found.extend(2)
    whole = LossCovariance(replace(WALK, members=7), losses="both")
    expected = whole.fit(case().problem, case().data, stream())
    assert len(found.ensemble) == 5
    assert len(longer.ensemble) == 7
    assert torch.equal(longer.table.columns, expected.table.columns)
    assert torch.equal(longer.scores(case().data), expected.scores(case().data))
    assert torch.equal(longer.train_table().columns[:, :5], found.train_table().columns)


def test_extending_draws_adds_draws():
    root = 0.1 * torch.eye(case().problem.num_params, dtype=torch.float64)
    found = LossCovariance(GaussianDraws(root, 4)).fit(case().problem, case().data)
    assert torch.equal(found.extend(3).table.columns[:, :4], found.table.columns)
    assert found.extend(3).table.columns.shape == (7, 7)


def test_a_store_that_holds_members_is_read(tmp_path: Path):
    problem, data = case().problem, case().data
    method, told = LossCovariance(WALK), []
    with heard_by(told.append):
        first = method.over(problem, data, stream(), MemberStore(tmp_path, "key"))
    again = method.over(problem, data, stream(), MemberStore(tmp_path, "key"))
    assert told == [f"member {i} is made" for i in range(1, 6)]
    assert torch.equal(again.table.columns, first.table.columns)
    assert torch.equal(first.table.columns, method.fit(problem, data, stream()).table.columns)


def test_errors_are_over_chains_where_there_are_four():
    sampler = replace(WALK, members=8, chains=4)
    found = LossCovariance(sampler, losses="both").fit(case().problem, case().data, stream())
    assert found.table.units.unique().tolist() == [0, 1, 2, 3]
    own = found.self_influence()
    assert bool(torch.isfinite(own.stderr).all())
    few = LossCovariance(replace(WALK, members=4, chains=2)).fit(case().problem, case().data)
    assert few.table.units.tolist() == [0, 1, 2, 3]


def test_reliability_is_that_of_the_table():
    assert -1 <= fitted().reliability() <= 1
    few = LossCovariance(replace(WALK, members=3), losses="both")
    assert torch.isnan(torch.tensor(few.fit(case().problem, case().data, stream()).reliability()))


def test_members_that_do_not_train_have_seen_nothing():
    method = LossCovariance(drifting(0.5), losses="seen")
    with pytest.raises(ValueError, match="carry none of the training losses"):
        method.fit(case().problem, case().data)


def test_it_is_an_influence_method_whose_result_is_an_influence():
    for method in (LossCovariance(WALK), GEX()):
        assert isinstance(method, InfluenceMethod)
        assert "Kim, Kim and Yang" in method.reference
    linear = LossCovariance(drifting(0.5), observe=tangents).fit(case().problem, case().data)
    assert isinstance(linear, Influence)
    assert not bool(linear.table.trained.any())


def test_checkpoints_cannot_be_extended():
    found = LossCovariance(drifting(0.5)).fit(case().problem, case().data)
    with pytest.raises(TypeError, match="Checkpoints has no setting 'members' to raise"):
        found.extend(1)
