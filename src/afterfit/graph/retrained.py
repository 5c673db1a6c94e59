"""The network that a user's training returns for fewer edges, and whether it was trained."""

import warnings

import torch
from torch import nn

from afterfit.graph.edges import EdgeList
from afterfit.graph.problem import GraphProblem


def retrained(before: GraphProblem, edges: EdgeList, module: nn.Module) -> GraphProblem:
    """Take over a network that was trained again, from the network and the graph before.

    Raises
    ------
    ValueError
        If it has another architecture, caches a graph, or has the parameters of ``before`` although
        its training nodes now have other outputs.

    Warns
    -----
    RuntimeWarning
        If it has lost more than half of what ``before`` had learned: how far the training loss is
        below that of outputs that are all 0.
    """
    after = before.with_edges(edges).with_module(module)
    old, new = before.problem.params, after.problem.params
    if all(torch.equal(old[name], new[name]) for name in old) and _moved(before, edges):
        message = (
            "train returned the parameters of the round before although the outputs of training "
            "nodes changed with the edges, expected a network trained on the edge_index that it is "
            "given; train inside the callback, and return that module"
        )
        raise ValueError(message)
    _warn_if_untrained(before, after)
    return after


def _moved(before: GraphProblem, edges: EdgeList) -> bool:
    """Whether fewer edges change the outputs of training nodes at the same parameters."""
    there = before.outputs(before.edges)[before.train]
    here = before.outputs(edges)[before.train]
    rounding = torch.finfo(there.dtype).eps ** 0.75 * (1 + float(there.abs().max()))
    return float((here - there).abs().max()) > rounding


def _warn_if_untrained(before: GraphProblem, after: GraphProblem) -> None:
    outputs = before.outputs(after.edges)
    was, now, nothing = (
        float(after.train_losses(values).mean())
        for values in (outputs, after.outputs(after.edges), torch.zeros_like(outputs))
    )
    if was < nothing and now > 0.5 * (was + nothing):
        message = (
            f"the network that train returned has a training loss of {now:.4g} nats, expected one "
            f"near or below {was:.4g}, that of the round before on the same edges (outputs of 0 "
            f"have {nothing:.4g}): it looks untrained; see that train fits the module it returns"
        )
        warnings.warn(message, RuntimeWarning, stacklevel=4)
