import pytest
import torch

from afterfit.graph import directed, union, upper

EDGE_INDEX = torch.tensor([[0, 1, 2, 2, 3, 1, 1], [1, 0, 0, 2, 1, 3, 3]])
"""0-1 both ways, 2→0, a loop at 2, 1-3 both ways and once more."""


def pairs(edges):
    return [tuple(pair) for pair in edges.pairs.tolist()]


def test_union_makes_every_edge_undirected_once():
    edges = union(EDGE_INDEX, 5)
    assert pairs(edges) == [(0, 1), (0, 2), (1, 3)]
    assert edges.loops.tolist() == [2]
    assert edges.num_nodes == 5  # node 4 is isolated and stays


def test_upper_loses_edges_given_from_the_larger_node():
    assert pairs(upper(EDGE_INDEX, 5)) == [(0, 1), (1, 3)]


def test_directed_keeps_each_direction_as_an_edge_of_its_own():
    edges = directed(EDGE_INDEX, 5)
    assert pairs(edges) == [(0, 1), (1, 0), (1, 3), (2, 0), (3, 1)]
    assert edges.edge_index().shape == (2, 6)


def test_edge_index_holds_both_directions_and_the_loops():
    edges = union(EDGE_INDEX, 5)
    assert edges.edge_index().tolist() == [[0, 0, 1, 1, 2, 3, 2], [1, 2, 3, 0, 0, 1, 2]]
    assert edges.owners().tolist() == [0, 1, 2, 0, 1, 2, -1]


def test_reading_an_edge_index_again_changes_nothing():
    edges = union(EDGE_INDEX, 5)
    again = union(edges.edge_index().flip(0), 5)
    assert torch.equal(again.pairs, edges.pairs)
    assert torch.equal(again.loops, edges.loops)


def test_an_edge_is_found_whichever_endpoint_comes_first():
    edges = union(EDGE_INDEX, 5)
    assert edges.positions(torch.tensor([[3, 1], [0, 2], [2, 0]])).tolist() == [2, 1, 1]


@pytest.mark.parametrize("pair", [(0, 3), (2, 2), (0, 7), (-1, 1)])
def test_an_edge_that_is_not_there_is_refused(pair):
    with pytest.raises(ValueError, match="is not an edge of the graph"):
        union(EDGE_INDEX, 5).positions(torch.tensor([pair]))


def test_a_graph_without_edges_has_no_edge_to_find():
    edges = union(torch.zeros(2, 0, dtype=torch.long), 3)
    assert edges.num_edges == 0
    with pytest.raises(ValueError, match="0 edges"):
        edges.positions(torch.tensor([[0, 1]]))


def test_removing_and_inserting_are_inverse():
    edges = union(EDGE_INDEX, 5)
    fewer = edges.without(torch.tensor([1]))
    assert pairs(fewer) == [(0, 1), (1, 3)]
    assert pairs(fewer.joined(torch.tensor([[2, 0]]))) == pairs(edges)


@pytest.mark.parametrize(
    ("new", "seen"),
    [
        ([[1, 0]], "1 are edges already"),
        ([[4, 4]], "1 are self loops"),
        ([[3, 4], [4, 3]], "1 stand twice"),
        ([[0, 9]], "nodes from 0 to 9"),
    ],
)
def test_pairs_that_cannot_be_inserted_are_refused(new, seen):
    with pytest.raises(ValueError, match=seen):
        union(EDGE_INDEX, 5).joined(torch.tensor(new))


def test_a_matrix_is_not_an_edge_index():
    with pytest.raises(ValueError, match="expected \\(2, number of edges\\)"):
        union(torch.ones(3, 3, dtype=torch.long), 3)


def test_edges_of_unknown_nodes_are_refused():
    with pytest.raises(ValueError, match="the features have 3 rows"):
        union(EDGE_INDEX, 3)
