"""From a choice of precisions to rounds on a graph, without planning anew."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from torch import fx

from seatrial.core.carrying import carries
from seatrial.core.graph import Graph
from seatrial.core.placement import PlacementRules
from seatrial.core.precision import Bits, Precision
from seatrial.core.realise import realise, source, tensor_inputs
from seatrial.core.recipe import Affine, FloatType, Grid, Recipe, Round
from seatrial.core.sites import Site, attribute, op_name, operators
from seatrial.errors import BadInput
from seatrial.numerics.ranges import grid_for, weight_grid
from seatrial.quant.groups import Grouping
from seatrial.quant.placement import Wanted, place_operators

FLOAT = "float"
"""The precision of a group that stays as it is: the float type of the runtime's setting."""
Choice = Mapping[str, str]
"""A precision (`w8a8`, `float`) for each group."""


@dataclass(eq=False)
class Assignments:
    """Recipes for choices of precisions, with the grids of one planned recipe.

    `planned` holds a quantizer's decision for the whole graph. Its migrations and other new parameters, found for its
    precision, stay in the recipe of every choice, that of float too; migrations change no choice's function. A round
    that stands elsewhere in a mixed network, on one reader's edge or with another sign, gets its grid from the same
    tensor's range: good for telling the time and the sensitivity, while the recipe that is delivered is planned by the
    quantizer itself, for the sites of `precision`.

    Raises BadInput as `integer_grids` does.
    """

    graph: Graph
    rules: PlacementRules
    grouping: Grouping
    planned: Recipe
    _grids: dict[tuple[Site, Precision], Grid] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        integer_grids(self.planned)
        self._edits = tuple(edit for edit in self.planned.edits if not isinstance(edit, Round))
        self._base = realise(self.graph, replace(self.planned, edits=self._edits))
        self._named = operators(self._base)
        self._ranges: dict[fx.Node, tuple[float, float]] = {}
        for edit in self.planned.rounds:
            if edit.site.port != "weight" and isinstance(edit.grid, Affine) and edit.grid.axis is None:
                low, high = ((code - int(edit.grid.zero_point)) * float(edit.grid.scale) for code in edit.grid.codes)
                self._ranges.setdefault(self._root(edit.site), (low, high))

    def precision(self, choice: Choice) -> dict[Site, Precision]:
        """Return what is asked of each site for a choice; groups that are left out stay float."""
        wanted: dict[str, Wanted] = {}
        for group in self.grouping.groups:
            chosen = choice.get(group.name, FLOAT)
            if chosen != FLOAT:
                wanted.update(dict.fromkeys(group.operators, Bits.parse(chosen)))
        return place_operators(self.graph, self.rules, wanted)

    def rounds(self, choice: Choice) -> tuple[Round, ...]:
        """Return the rounds for a choice; raises BadInput where no range is known for a tensor."""
        return tuple(Round(site, self._grid(site, wanted)) for site, wanted in self.precision(choice).items())

    def recipe(self, choice: Choice) -> Recipe:
        """Return the planned recipe with the rounds of a choice in place of its own."""
        return replace(self.planned, edits=(*self._edits, *self.rounds(choice)))

    def every_site(self, choices: Iterable[Choice]) -> Recipe:
        """Return a recipe with a round at each site of some choices: what to export once for all of them."""
        rounds: dict[Site, Round] = {}
        for choice in choices:
            for edit in self.rounds(choice):
                rounds.setdefault(edit.site, edit)
        return replace(self.planned, edits=(*self._edits, *rounds.values()))

    def sites_of(self, name: str, rounds: Iterable[Round]) -> frozenset[Site]:
        """Return those of some rounds that a group's operators read, and the rounds of its weights."""
        group = next(group for group in self.grouping.groups if group.name == name)
        nodes = [self._named[operator] for operator in group.operators]
        read = {
            part
            for node in nodes
            for value in tensor_inputs(node)
            if value.op != "get_attr"
            for part in self._parts(value)
        }
        own = set(group.operators)
        return frozenset(
            edit.site
            for edit in rounds
            if (edit.site.operator in own and edit.site.port != "output")
            or (edit.site.port == "output" and self._root(edit.site) in read)
        )

    def _root(self, site: Site) -> fx.Node:
        """Return the tensor at a site, behind operators that only carry values on."""
        return self._behind(source(self._named[site.operator], site.port))

    def _behind(self, node: fx.Node) -> fx.Node:
        while carries(node) and tensor_inputs(node):
            node = tensor_inputs(node)[0]
        return node

    def _parts(self, value: fx.Node) -> list[fx.Node]:
        """Return the tensor behind a value, and where that is a concatenation all that it is made of too."""
        root = self._behind(value)
        if op_name(root) != "cat":
            return [root]
        return [root, *(part for read in tensor_inputs(root) for part in self._parts(read))]

    def _grid(self, site: Site, wanted: Precision) -> Grid:
        if (site, wanted) not in self._grids:
            self._grids[site, wanted] = self._new_grid(site, wanted)
        return self._grids[site, wanted]

    def _new_grid(self, site: Site, wanted: Precision) -> Grid:
        if site.port == "weight":
            value = source(self._named[site.operator], "weight")
            return weight_grid(attribute(self._base.module, str(value.target)), wanted)
        for edit in self.planned.rounds:
            if edit.site == site and isinstance(edit.grid, Affine) and edit.grid.bits == wanted.bits:
                return edit.grid
        known = self._ranges.get(self._root(site))
        if known is None:
            raise BadInput(f"no range for {site}", "a tensor that the uniform recipe rounds", "plan with that site")
        return grid_for(*known, wanted)


def integer_grids(recipe: Recipe) -> Recipe:
    """Return the recipe; raises BadInput where a grid is none of those that integer kernels and modeled chips read.

    Logarithmic, twin, grouped and run-time grids are float operators there: a search over integers would time those.
    """
    for edit in recipe.rounds:
        if not isinstance(edit.grid, Affine | FloatType):
            came = f"a quantizer whose grid at {edit.site} is {type(edit.grid).__name__.lower()}"
            wanted = "affine grids, since a search times integer kernels"
            raise BadInput(came, wanted, "take another --quantizer, such as nearest or os-plus")
    return recipe
