"""Run a graph with all batches in step: each operator is finished for every batch before the next one starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from seatrial.core.graph import Graph
from seatrial.core.predictor import Inputs
from seatrial.core.sites import attribute
from seatrial.numerics.observe import tensors_of
from seatrial.numerics.walk import call


def run_in_step(graph: Graph, batches: Sequence[Inputs], change: Callable[[fx.Node, list[Any]], list[Any]]) -> None:
    """Run `graph` on all batches, operator by operator, and go on with what `change(node, values)` returns.

    So a statistic over all batches can alter an operator's output before anything reads it, in one pass. Values are
    freed when their last reader is done.
    """
    rows = [tensors_of(graph, batch) for batch in batches]
    holders = iter(range(len(graph.inputs)))
    values: dict[fx.Node, list[Any]] = {}
    waiting = {node: len(node.users) for node in graph.nodes()}
    with torch.no_grad():
        for node in graph.nodes():
            if node.op == "output":
                return
            if node.op == "placeholder":
                index = next(holders)
                values[node] = [row[index] for row in rows]
            elif node.op == "get_attr":
                values[node] = [attribute(graph.module, str(node.target))] * len(rows)
            else:
                made = [call(node, lambda read, row=row: values[read][row]) for row in range(len(rows))]
                values[node] = change(node, made)
            for read in node.all_input_nodes:
                waiting[read] -= 1
                if not waiting[read]:
                    del values[read]


def peak_bytes(graph: Graph, batch: Inputs) -> int:
    """Return the most bytes of activations alive at once when one batch runs, told from its first sample."""
    alive: dict[fx.Node, int] = {}
    done: set[fx.Node] = set()
    peak = 0

    def weigh(node: fx.Node, made: list[Any]) -> list[Any]:
        nonlocal peak
        done.add(node)
        alive[node] = sum(value.numel() * value.element_size() for value in made if isinstance(value, Tensor))
        peak = max(peak, sum(alive.values()))
        for old in [old for old in alive if done.issuperset(old.users)]:
            del alive[old]
        return made

    rows = tensors_of(graph, batch)
    if not isinstance(graph.inputs[0].shape[0], str):  # the batch size is fixed
        run_in_step(graph, [batch], weigh)
        return peak
    run_in_step(graph, [{spec.name: row[:1] for spec, row in zip(graph.inputs, rows, strict=True)}], weigh)
    return peak * len(rows[0])
