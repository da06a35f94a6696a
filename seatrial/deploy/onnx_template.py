"""One export, many assignments: an ONNX graph in which every place for a round is marked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir
import torch

from seatrial.core.graph import Graph
from seatrial.core.realise import realise
from seatrial.core.recipe import Affine, FloatType, Grid, Recipe, Round
from seatrial.core.sites import Site, op_name
from seatrial.deploy.onnx_constants import Names, add_constant
from seatrial.deploy.onnx_export import ExportedOnnx, finish, translated
from seatrial.deploy.onnx_lowering import DOMAIN
from seatrial.errors import BadInput, NotApplicable


@dataclass(frozen=True, eq=False)
class OnnxTemplate:
    """Writes the ONNX file of any choice of rounds without exporting again: in tenths of a second.

    The graph is exported once with a mark at each site that a recipe rounds; its other edits are carried out in all
    files. `write(rounds)` then puts those rounds on their marks and takes the other marks out.

    Law: a file runs the same operators, and answers the same, as the export of the graph with those rounds.
    """

    graph: Graph
    sites: tuple[Site, ...]
    _model: ir.Model

    @staticmethod
    def of(graph: Graph, recipe: Recipe, prepare: Callable[[Graph], Graph] = lambda graph: graph) -> OnnxTemplate:
        """Export `graph` with marks at the rounds of `recipe`; `prepare` is what a target does before its export.

        Raises BadInput as `write_onnx` does.
        """
        sites = list(dict.fromkeys(edit.site for edit in recipe.rounds))
        numbers = {str(site): index for index, site in enumerate(sites)}
        # A mark is a round whose lowest and highest code are its number: no two are merged, and none is run.
        mark = Affine(8, True, torch.ones(()), torch.zeros((), dtype=torch.int64))
        edits = [edit for edit in recipe.edits if not isinstance(edit, Round)]
        marked = realise(graph, replace(recipe, edits=(*edits, *(Round(site, mark) for site in sites))))
        for node in marked.nodes():
            if op_name(node) == "qdq":
                number = numbers[node.meta["site"]]
                node.args = (*node.args[:3], number, number, -1)
        return OnnxTemplate(graph, tuple(sites), translated(prepare(marked)))

    def write(
        self,
        rounds: Sequence[Round],
        path: Path,
        *,
        native_floats: frozenset[str] = frozenset(),
        for_onnxruntime: bool = False,
    ) -> ExportedOnnx:
        """Write the file with these rounds to `path`; options as `write_onnx` has them.

        Raises BadInput for a round that has no mark, NotApplicable for grids other than `Affine` and `FloatType`.
        """
        grids = {edit.site: edit.grid for edit in rounds}
        missing = sorted(str(site) for site in set(grids) - set(self.sites))
        if missing:
            raise BadInput(f"a round at {missing[0]}", "one of the sites that were exported", "export them too")
        model = self._model.clone()
        names = Names(model.graph)
        written: dict[tuple[object, ...], ir.Value] = {}
        for node in list(model.graph):
            if node.domain != DOMAIN or node.op_type != "Qdq":
                continue
            source, grid = node.inputs[0], grids.get(self.sites[node.attributes["low"].as_int()])
            assert source is not None
            if grid is None:
                result = source
            else:
                # Two readers of one tensor that ask for one grid read one round, as the exporter would have it.
                key = (source, *_content(grid))
                if key not in written:
                    written[key] = _rounded(model.graph, names, node, source, grid)
                result = written[key]
            node.outputs[0].replace_all_uses_with(result, replace_graph_outputs=True)
            model.graph.remove(node, safe=True)
        return finish(
            self.graph,
            model,
            path,
            native_floats=native_floats,
            for_onnxruntime=for_onnxruntime,
        )


def _content(grid: Grid) -> tuple[object, ...]:
    if isinstance(grid, FloatType):
        return (grid.kind,)
    if not isinstance(grid, Affine):
        raise NotApplicable(f"a template has no marks for rounds of the kind {type(grid).__name__}")
    return (*grid.codes, grid.axis, grid.scale.numpy().tobytes(), grid.zero_point.numpy().tobytes())


def _rounded(graph: ir.Graph, names: Names, mark: ir.Node, source: ir.Value, grid: Grid) -> ir.Value:
    """Add our own operator for a round in front of its mark and return its output."""
    out = ir.Value(name=names.free(f"{source.name}_marked"), shape=mark.outputs[0].shape, type=mark.outputs[0].type)
    if isinstance(grid, FloatType):
        node = ir.Node(DOMAIN, "NarrowFloat", [source], [ir.AttrString("kind", grid.kind)], outputs=[out])
    else:
        assert isinstance(grid, Affine), "refused above"
        low, high = grid.codes
        values = {"low": low, "high": high, "axis": -1 if grid.axis is None else grid.axis}
        scale = add_constant(graph, names, "marked_scale", grid.scale.detach().float().numpy())
        zero = add_constant(graph, names, "marked_zero_point", grid.zero_point.long().numpy())
        kept = [ir.AttrInt64(name, value) for name, value in values.items()]
        node = ir.Node(DOMAIN, "Qdq", [source, scale, zero], kept, outputs=[out])
    graph.insert_before(mark, node)
    return out
