"""What ``afterfit edges --rule`` makes of its text."""

import math

import pytest

from afterfit import graph
from afterfit.cli.edges import _rule


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("share", graph.TopShare(0.01)),
        ("top:7", graph.Top(7)),
        ("strict", graph.Repulsive(math.inf)),
        ("ege", graph.all_opponents),
        ("jaccard", graph.LeastSimilar(0.01, graph.jaccard)),
        ("cosine", graph.LeastSimilar(0.01, graph.cosine)),
        ("jaccard:0.05", graph.Dissimilar(0.05, graph.jaccard)),
        ("cosine:-.5", graph.Dissimilar(-0.5, graph.cosine)),
    ],
)
def test_rules_are_those_of_their_names(text: str, expected: object):
    assert _rule(text, graph, None) == expected


@pytest.mark.parametrize("text", ["", "worst", "top:0", "jaccard:", "jaccard:much", "share:2"])
def test_other_rules_are_refused(text: str):
    with pytest.raises(ValueError, match=r"expected share, .*jaccard:LEAST, or cosine:LEAST"):
        _rule(text, graph, None)
