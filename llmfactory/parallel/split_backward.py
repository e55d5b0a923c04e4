"""A backward pass in two parts: the gradients of a stage's inputs now, those of its weights later (Qi et al. 2023, section 2).

A node of the graph lies on the way if it leads to an input. Where such a node also leads to weights along a side way, which no input
is on, it is a fork: its incoming gradient is all that the weights behind it need. The first part runs the way and keeps the
gradients at the forks, the second part starts from them.

Forks that share a weight (a table of score biases, blocks that are used twice) are run together, and one may lie on the way of
another: each is then given its kept gradient instead of what arrives, which it has had already.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

Gradients = tuple[Tensor | None, ...]
Later = Callable[[], None]
"""Adds up the gradients of the weights in their `.grad`; to be called once."""


def backward_of_inputs(
    outputs: Sequence[Tensor], gradients: Sequence[Tensor | None], inputs: Sequence[Tensor]
) -> tuple[Gradients, Later]:
    """The gradients of `inputs`, leaves that require one, and what is left to do. `gradients`: of the outputs; None: of a scalar, 1."""
    given = [torch.ones_like(out) if grad is None else grad for out, grad in zip(outputs, gradients, strict=True)]
    edges = [get_gradient_edge(out) for out in outputs]
    way = _Way([edge.node for edge in edges], {get_gradient_edge(x).node for x in inputs})
    kept: dict[Node, Gradients] = {}
    handles = [fork.register_prehook(_keep(kept, fork)) for fork in way.forks]
    try:
        found = torch.autograd.grad(outputs, inputs, given, retain_graph=True, allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    off = [(edge, grad) for edge, grad in zip(edges, given, strict=True) if edge.node not in way.nodes]
    return found, lambda: _backward_of_weights(way, kept, off)


def _keep(kept: dict[Node, Gradients], fork: Node) -> Callable[[Any], None]:
    def hook(arriving: Gradients) -> None:
        kept[fork] = arriving

    return hook


def _backward_of_weights(way: _Way, kept: dict[Node, Gradients], off: list[tuple[GradientEdge, Tensor]]) -> None:
    for forks, weights in way.groups():
        starts = [
            (GradientEdge(fork, number), grad)
            for fork in forks
            for number, grad in enumerate(kept.get(fork, ()))
            if grad is not None
        ]
        replace = [fork.register_prehook(lambda _, own=kept[fork]: own) for fork in forks if fork in kept]
        try:
            _accumulate(starts, weights)
        finally:
            for handle in replace:
                handle.remove()
    for edge, grad in off:
        _accumulate([(edge, grad)], way.behind(edge.node))


def _accumulate(starts: list[tuple[GradientEdge, Tensor]], weights: set[Node]) -> None:
    # The graph is kept, because forks of another group may need the same saved tensors; it goes when the last reference does.
    if starts and weights:
        edges, gradients = zip(*starts, strict=True)
        leaves = [node.variable for node in weights]  # type: ignore[attr-defined]
        torch.autograd.backward(edges, gradients, retain_graph=True, inputs=leaves)


class _Way:
    """What lies between the outputs of a graph and its inputs."""

    def __init__(self, outputs: Sequence[Node], inputs: set[Node]) -> None:
        self.inputs = inputs
        self.nodes: set[Node] = set()
        """Nodes that lead to an input."""
        self.side: dict[Node, set[Node]] = {}
        """For each node that leads to no input, the leaves behind it."""
        for node in _children_first(outputs):
            following = _following(node)
            if node in inputs or any(one in self.nodes for one in following):
                self.nodes.add(node)
            elif hasattr(node, "variable"):  # the end of the graph, where a leaf's gradient is added up
                self.side[node] = {node}
            else:
                self.side[node] = set().union(*(self.side[one] for one in following))
        self.forks = [node for node in self.nodes if self.behind(node)]

    def behind(self, node: Node) -> set[Node]:
        """Leaves that a node leads to along side ways."""
        if node in self.side:
            return self.side[node]
        return set().union(*(self.side[one] for one in _following(node) if one in self.side))

    def groups(self) -> list[tuple[list[Node], set[Node]]]:
        """Forks, and the leaves that they alone lead to."""
        found: list[tuple[list[Node], set[Node]]] = []
        for fork in self.forks:
            forks, leaves = [fork], self.behind(fork)
            apart = []
            for group in found:
                if group[1].isdisjoint(leaves):
                    apart.append(group)
                else:
                    forks, leaves = forks + group[0], leaves | group[1]
            found = [*apart, (forks, leaves)]
        return found


def _following(node: Node) -> list[Node]:
    return [one for one, _ in node.next_functions if one is not None]


def _children_first(roots: Sequence[Node]) -> list[Node]:
    """All nodes that can be reached, each after those that follow it."""
    found: dict[Node, None] = {}
    open_nodes: list[tuple[Node, bool]] = [(root, False) for root in roots]
    seen: set[Node] = set()
    while open_nodes:
        node, done = open_nodes.pop()
        if done:
            found[node] = None
        elif node not in seen:
            seen.add(node)
            open_nodes.append((node, True))
            open_nodes += [(one, False) for one in _following(node) if one not in seen]
    return list(found)
