"""Carry out a recipe: a new graph, nothing changed in place."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from itertools import zip_longest

from torch import Tensor, fx

from seatrial.core.constants import set_constant
from seatrial.core.graph import Graph, copied, finished
from seatrial.core.insert_round import insert_round
from seatrial.core.migrate import migrate
from seatrial.core.recipe import Migrate, Recipe, Replace, Round
from seatrial.core.sites import Site, operators, signature
from seatrial.errors import BadInput


def tensor_inputs(node: fx.Node) -> list[fx.Node]:
    """Return the nodes that `node` reads, in order of its arguments; lists (as in `cat`) are flattened."""
    found: list[fx.Node] = []
    for argument in node.args:
        parts = argument if isinstance(argument, list | tuple) else [argument]
        found.extend(part for part in parts if isinstance(part, fx.Node))
    return found


def source(node: fx.Node, port: str) -> fx.Node:
    """Return the node whose value stands at a port of `node`; raises BadInput where there is none."""
    if port == "output":
        return node
    index = {"weight": 1, "bias": 2}.get(port)
    if index is not None and len(node.args) > index:
        value = node.args[index]
        if isinstance(value, fx.Node):
            return value
    if port.startswith("input") and port[5:].isdigit() and int(port[5:]) < len(tensor_inputs(node)):
        return tensor_inputs(node)[int(port[5:])]
    raise BadInput(f"port '{port}' of {node.target}", "output, weight, bias or inputN that exists", "check the site")


def realise(graph: Graph, recipe: Recipe) -> Graph:
    """Return a new graph in which the edits of `recipe` have been carried out in order.

    Raises BadInput where the recipe was made for another graph, naming the first operator that differs, and for an
    edit that does not fit its operator.
    """
    _check(graph, recipe)
    new = copied(graph)
    named = operators(new)
    for i, edit in enumerate(recipe.edits):
        for site in _sites(edit):
            _require(named, site)
        match edit:
            case Round(site, grid):
                node = named[site.operator]
                insert_round(new.module, node, source(node, site.port), site, grid, f"round{i}")
            case Replace(site, value):
                _replace(new.module, named[site.operator], site, value, f"replace{i}")
            case Migrate():
                migrate(new.module, named, edit, f"migrate{i}")
    return finished(new)


def _check(graph: Graph, recipe: Recipe) -> None:
    for mine, theirs in zip_longest(signature(graph), recipe.signature, fillvalue="missing"):
        if mine != theirs:
            raise BadInput(f"a recipe whose operator {theirs} is {mine} here", "the graph it was planned on", "re-plan")


def _sites(edit: Round | Replace | Migrate) -> tuple[Site, ...]:
    return (edit.producer, *edit.consumers) if isinstance(edit, Migrate) else (edit.site,)


def _require(named: Mapping[str, fx.Node], site: Site) -> None:
    if site.operator not in named:
        near = difflib.get_close_matches(site.operator, named, n=1, cutoff=0.0)
        raise BadInput(f"site '{site}'", "an operator of this graph", f"did you mean '{near[0]}:{site.port}'?")


def _replace(module: fx.GraphModule, node: fx.Node, site: Site, value: Tensor, name: str) -> None:
    if site.port not in ("weight", "bias"):
        raise BadInput(f"a replacement at {site}", "a weight or bias port", "name a parameter")
    set_constant(module, node, 1 if site.port == "weight" else 2, value, name)
