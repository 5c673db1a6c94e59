"""What ``afterfit edges --rule`` makes of its text."""

import math

import pytest

from afterfit import graph
from afterfit.cli.edges import _rule


@pytest.mark.parametrize(
    ("text", "expected", "tolerance"),
    [
        ("share", graph.TopShare(0.01), 0.0),
        ("top:7", graph.Top(7), 0.0),
        ("strict", graph.Repulsive(math.inf), 0.0),
        ("ege", graph.all_opponents, 0.0),
        ("jaccard", graph.LeastSimilar(0.01, graph.jaccard), -math.inf),
        ("cosine", graph.LeastSimilar(0.01, graph.cosine), -math.inf),
        ("jaccard:0.05", graph.Dissimilar(0.05, graph.jaccard), -math.inf),
        ("cosine:-.5", graph.Dissimilar(-0.5, graph.cosine), -math.inf),
    ],
)
def test_rules_are_those_of_their_names(text: str, expected: object, tolerance: float):
    assert _rule(text, graph, None) == (expected, tolerance)


@pytest.mark.parametrize("text", ["", "worst", "top:0", "jaccard:", "jaccard:much", "share:2"])
def test_other_rules_are_refused(text: str):
    with pytest.raises(ValueError, match=r"expected share, .*jaccard:LEAST, or cosine:LEAST"):
        _rule(text, graph, None)
