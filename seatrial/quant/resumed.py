"""A network that was run once and runs on from what a few rounds change."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves

from seatrial.core.further_rounds import ROUNDS
from seatrial.core.graph import Graph
from seatrial.core.predictor import Inputs
from seatrial.core.realise import realise
from seatrial.core.recipe import Affine, Recipe, Replace, Round
from seatrial.core.sites import Site, attribute, op_name, operators, signature
from seatrial.errors import BadInput
from seatrial.numerics.observe import tensors_of

KEPT_BYTES = 3 * 2**29
"""1.5 GiB: what the values of one clean run may take."""

Calls = Mapping[fx.Node, Callable[..., Any]]
"""Nodes that compute something else than in the clean run, and what."""


class Resumed:
    """The graph of a recipe whose rounds are off until a call switches some of them on.

    `clean` runs it and keeps all values; `run_on` and `local` compute anew only what reads a changed value. Edits that
    keep the network's function stay; bias corrections are left out, see `bias_corrections`.
    """

    def __init__(self, graph: Graph, recipe: Recipe | None = None) -> None:
        recipe = Recipe((), signature(graph)) if recipe is None else recipe
        left_out = bias_corrections(recipe)
        kept = tuple(edit for edit in recipe.edits if not any(edit is other for other in left_out))
        self.graph = realise(graph, Recipe(kept, recipe.signature))
        self.operators = operators(self.graph)
        self.values: dict[fx.Node, Any] = {}
        self.rounds: dict[Site, fx.Node] = {}
        self._nodes = self.graph.nodes()
        self._order = {node: i for i, node in enumerate(self._nodes)}
        self._last = {read: node for node in self._nodes for read in node.all_input_nodes}
        for node in self._nodes:
            if op_name(node) in ROUNDS and "site" in node.meta:
                self.rounds[Site.parse(str(node.meta["site"]))] = node
        self._passed = frozenset(self.rounds.values())

    def clean(self, tensors: Sequence[Tensor]) -> Tensor:
        """Run with all rounds off, keep every value in `values` and return the output."""
        self.values = {}
        given = iter(tensors)
        with torch.no_grad():
            for node in self._nodes:
                if node.op == "placeholder":
                    self.values[node] = next(given)
                elif node.op == "get_attr":
                    self.values[node] = attribute(self.graph.module, str(node.target))
                else:
                    self.values[node] = self._computed(node, {}, {})
        return self.values[self._nodes[-1]]

    def forget(self) -> None:
        """Free the values of the clean run."""
        self.values = {}

    @property
    def kept_bytes(self) -> int:
        """Bytes that the values of the clean run take, parameters not counted."""
        parameters = {
            value.untyped_storage().data_ptr() for node, value in self.values.items() if node.op == "get_attr"
        }
        made = [leaf.untyped_storage() for leaf in tree_leaves(list(self.values.values())) if isinstance(leaf, Tensor)]
        sizes = {storage.data_ptr(): storage.nbytes() for storage in made}
        return sum(size for pointer, size in sizes.items() if pointer not in parameters)

    def switched_on(self, sites: Collection[Site]) -> dict[fx.Node, Callable[..., Any]]:
        """Return the calls that round at `sites`; raises BadInput for a site that the recipe does not round."""
        for site in sites:
            if site not in self.rounds:
                raise BadInput(f"the site '{site}' in a group", "a site that the recipe rounds", "group its rounds")
        return {self.rounds[site]: self.rounds[site].target for site in sites}  # pyright: ignore[reportReturnType]

    def run_on(self, calls: Calls) -> Tensor:
        """Return the output of the network when the nodes of `calls` compute what stands there."""
        return self.local(calls, self._nodes[-1:])[self._nodes[-1]]

    def local(self, calls: Calls, ends: Collection[fx.Node]) -> dict[fx.Node, Tensor]:
        """Return the values at `ends`, computing nothing that does not lead there."""
        changed: dict[fx.Node, Any] = {}
        with torch.no_grad():
            for node in self._between(calls, ends):
                if node not in calls and changed.keys().isdisjoint(node.all_input_nodes):
                    continue
                changed[node] = self._computed(node, calls, changed)
                for read in node.all_input_nodes:
                    if self._last[read] is node and read not in ends:
                        changed.pop(read, None)
        return {node: changed.get(node, self.values[node]) for node in ends}

    def _between(self, calls: Calls, ends: Collection[fx.Node]) -> list[fx.Node]:
        """Return the nodes from the first of `calls` on that `ends` depend on, in order."""
        start = min((self._order[node] for node in calls), default=len(self._nodes))
        stop = max(self._order[node] for node in ends)
        needed, found = set(ends), list[fx.Node]()
        for node in reversed(self._nodes[start : stop + 1]):
            if node in needed:
                found.append(node)
                needed.update(node.all_input_nodes)
        return found[::-1]

    def _computed(self, node: fx.Node, calls: Calls, changed: Mapping[fx.Node, Any]) -> Any:
        def value(read: fx.Node) -> Any:
            return changed[read] if read in changed else self.values[read]

        args, kwargs = map_arg((node.args, node.kwargs), value)
        if node.op == "output" or (node in self._passed and node not in calls):
            return args[0]
        return calls.get(node, node.target)(*args, **kwargs)  # pyright: ignore[reportCallIssue]


def bias_corrections(recipe: Recipe) -> list[Replace]:
    """Return the edits that correct biases for all rounds of a recipe, rather than keep the network's function.

    They are planned for the errors of all operators together, those of the inputs included, so next to the rounds of
    one group they are wrong. They are the last edits in front of the rounds, one for every convolution and linear
    operator whose weight is rounded; what equalization puts into biases stands before them, for fewer operators.
    """
    weights = [edit for edit in recipe.rounds if edit.site.port == "weight" and isinstance(edit.grid, Affine)]
    rounded = {edit.site.operator for edit in weights if edit.site.op in ("conv2d", "linear")}
    found: dict[str, Replace] = {}
    for edit in reversed([edit for edit in recipe.edits if not isinstance(edit, Round)]):
        if not isinstance(edit, Replace) or edit.site.port != "bias" or edit.site.operator not in rounded - set(found):
            break
        found[edit.site.operator] = edit
    return list(found.values()) if found.keys() == rounded else []


def in_parts(graph: Graph, batch: Inputs, *, memory_bytes: int = KEPT_BYTES) -> Iterator[tuple[Tensor, ...]]:
    """Yield a batch in parts of which a clean run keeps at most `memory_bytes`, told from its first sample.

    A graph with a fixed batch size gets its batch whole. Raises BadInput for a batch without samples.
    """
    rows = tensors_of(graph, batch)
    if not len(rows[0]):
        raise BadInput("a batch without samples", "at least one sample", "pass calibration or synthetic inputs")
    if not isinstance(graph.inputs[0].shape[0], str):
        yield rows
        return
    one = Resumed(graph)
    one.clean([row[:1] for row in rows])
    size = max(1, memory_bytes // max(1, one.kept_bytes))
    for start in range(0, len(rows[0]), size):
        yield tuple(row[start : start + size] for row in rows)
