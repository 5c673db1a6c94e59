"""Loss tables against loops over members and samples."""

import sys
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Generator, Tensor
from torch.testing import assert_close

from afterfit.influence import (
    LossTable,
    covariance,
    member_losses,
    seen_losses,
    tangents,
    there_minus_here,
    uncentered_moment,
)
from afterfit.influence.covariance import (
    cross_influence_with_stderr,
    reliability,
    self_influence_with_stderr,
    tangent_moves,
)
from afterfit.influence.table import OnDisk, side_by_side
from afterfit.problem import Batches, Member, Problem
from tests import truth
from tests.cases import CASES, Case, make_case, name_of

EXACT = {"rtol": 1e-10, "atol": 1e-10}
every_case = pytest.mark.parametrize("case", CASES, ids=name_of)
NAN = float("nan")


def members_of(problem: Problem, num: int = 3, chains: Sequence[int] = (0,)) -> list[Member]:
    generator = Generator().manual_seed(4)

    def near(value: Tensor) -> Tensor:
        if not value.is_floating_point():
            return value
        return value + 0.2 * torch.rand(value.shape, dtype=value.dtype, generator=generator)

    known = {**problem.params, **problem.buffers}
    return [
        Member({n: near(v) for n, v in known.items()}, chains[i % len(chains)], i // len(chains))
        for i in range(num)
    ]


def standing_at(problem: Problem, member: Member) -> Problem:
    return replace(problem, params=member.params, buffers={})


@every_case
def test_columns_are_the_losses_at_each_member(case: Case):
    members = members_of(case.problem)
    table = member_losses(case.problem, case.data, members)
    assert_close(table.trained, truth.losses(case.problem, case.data), **EXACT)
    for column, member in zip(table.columns.T, members, strict=True):
        assert_close(column, truth.losses(standing_at(case.problem, member), case.data), **EXACT)


@every_case
def test_tangents_are_gradients_times_the_way_to_each_member(case: Case):
    members = members_of(case.problem)
    rows, center = truth.gradients(case.problem, case.data), truth.flat(dict(case.problem.params))
    ways = [truth.flat([m.params[n] for n in case.problem.params]) - center for m in members]
    moves = tangent_moves(case.problem, case.data, members)
    assert_close(moves, rows @ torch.stack(ways, 1), **EXACT)
    table = tangents(case.problem, case.data, iter(members))
    assert torch.equal(table.columns, moves)
    assert not bool(table.trained.any())


@pytest.mark.parametrize("observe", [member_losses, tangents])
def test_members_are_read_once(observe):
    case = make_case("mlp", "gaussian")
    assert observe(case.problem, case.data, iter(members_of(case.problem))).columns.shape == (7, 3)


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_a_table_does_not_depend_on_the_batch_size(batch_size: int):
    case = make_case("batch-norm", "categorical")
    members, other = members_of(case.problem), Batches(case.data, batch_size)
    for observe in (member_losses, tangents):
        first, second = (observe(case.problem, data, members) for data in (case.data, other))
        assert_close(first.columns, second.columns, **EXACT)


@pytest.mark.parametrize(
    ("chains", "units"),
    [
        ((0,), [0, 1, 2, 3, 4, 5, 6, 7]),
        ((0, 1, 2), [0, 1, 2, 3, 4, 5, 6, 7]),
        ((0, 1, 2, 3), [0, 1, 2, 3, 0, 1, 2, 3]),
    ],
)
def test_chains_are_the_units_where_there_are_four(chains: Sequence[int], units: list[int]):
    case = make_case("linear", "gaussian")
    members = members_of(case.problem, 8, chains)
    for observe in (member_losses, tangents):
        assert observe(case.problem, case.data, members).units.tolist() == units


def saw(problem: Problem, *rows: Sequence[float]) -> list[Member]:
    return [
        Member(problem.params, 0, stage, torch.tensor(row, dtype=torch.float64))
        for stage, row in enumerate(rows)
    ]


def test_what_a_stage_did_not_read_is_the_mean_of_what_the_others_saw():
    case = make_case("linear", "gaussian")
    members = saw(
        case.problem,
        [1.0, NAN, 3.0, 4.0, NAN, 6.0, 7.0],
        [1.5, 2.0, NAN, 4.5, NAN, 6.5, 7.5],
        [2.0, 4.0, 3.5, 5.0, 9.0, NAN, 8.0],
    )
    table = seen_losses(case.problem, case.data, members)
    assert_close(
        table.columns.T,
        torch.tensor(
            [
                [1.0, 3.0, 3.0, 4.0, 9.0, 6.0, 7.0],
                [1.5, 2.0, 3.25, 4.5, 9.0, 6.5, 7.5],
                [2.0, 4.0, 3.5, 5.0, 9.0, 6.25, 8.0],
            ],
            dtype=torch.float64,
        ),
    )
    assert_close(table.trained, truth.losses(case.problem, case.data), **EXACT)


def test_members_that_did_not_see_the_data_are_refused():
    case = make_case("linear", "gaussian")
    refused = {
        "carry none of the training losses": members_of(case.problem),
        "carry those of 2 samples of the training losses, expected 7": saw(case.problem, [1, 2]),
        "1 samples were never read": saw(case.problem, [1, 2, 3, 4, 5, 6, NAN]),
    }
    for said, members in refused.items():
        with pytest.raises(ValueError, match=said):
            seen_losses(case.problem, case.data, members)


def test_two_tables_side_by_side_keep_a_member_one_unit():
    left = LossTable(torch.ones(2), torch.zeros(2, 3), torch.arange(3))
    right = LossTable(torch.ones(2), torch.ones(2, 3), torch.arange(3))
    both = side_by_side(left, right)
    assert both.columns.tolist() == [[0, 0, 0, 1, 1, 1]] * 2
    assert both.units.tolist() == [0, 1, 2, 0, 1, 2]
    assert both.without(1).columns.tolist() == [[0, 0, 1, 1]] * 2


def test_a_table_on_disk_is_the_table_in_memory(tmp_path):
    case = make_case("linear", "gaussian")
    members = saw(case.problem, [1, 2, NAN, 4, 5, 6, 7], [2, 3, 4, 5, 6, NAN, 8], [1] * 7)
    tables = []
    for place in (lambda: None, lambda: OnDisk(tmp_path)):
        made = [
            observe(case.problem, case.data, members, place())
            for observe in (member_losses, tangents, seen_losses)
        ]
        tables.append([*made, side_by_side(made[0], made[2], place())])
    for in_memory, on_disk in zip(*tables, strict=True):
        assert torch.equal(in_memory.columns, on_disk.columns)
        assert torch.equal(in_memory.trained, on_disk.trained)
    assert list(tmp_path.iterdir()) == []


def test_scores_do_not_depend_on_how_many_rows_are_worked_on_at_a_time(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    columns = torch.rand(7, 6, generator=generator, dtype=torch.float64)
    table = LossTable(torch.zeros(7, dtype=torch.float64), columns, torch.arange(6))
    query = table.rows(torch.tensor([1, 5]))

    def scores() -> list[Tensor]:
        own = self_influence_with_stderr(table, there_minus_here, covariance)
        cross = cross_influence_with_stderr(query, table, there_minus_here, covariance)
        half = torch.tensor(reliability(table, there_minus_here, uncentered_moment))
        return [own.value, own.stderr, cross.value, cross.stderr, half]

    whole = scores()
    monkeypatch.setattr(sys.modules[LossTable.__module__], "_ROWS", 3)
    for one, other in zip(whole, scores(), strict=True):
        assert_close(one, other, **EXACT)
