"""Quantization-aware training: rounds that learn, put into a captured graph where a recipe would put its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from glob import escape
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn
from torch._ops import OpOverload

import seatrial.core.qdq  # noqa: F401  (registers the operators)
from seatrial.core.graph import Graph
from seatrial.core.placement import PlacementRules
from seatrial.core.precision import Bits, Precision
from seatrial.core.predictor import Inputs
from seatrial.core.realise import source
from seatrial.core.recipe import Affine, Edit, FloatType, Recipe, Replace, Round
from seatrial.core.sites import Site, attribute, op_name, operators, signature, site_of
from seatrial.errors import BadInput, no_calibration, unknown_name
from seatrial.numerics.batch_norm import fold_batch_norm, norm_affine
from seatrial.numerics.observe import watch
from seatrial.numerics.ranges import Observed, Range, grid_for
from seatrial.quant.operator_kinds import WEIGHTED
from seatrial.quant.placement import place
from seatrial.train.trainable import Norms, trainable, trained

Ends = Literal["8", "same", "float"]
WEIGHTED_ONLY = PlacementRules(
    "weighted", "by-range", operator_outputs=False, residual_adds=False, pooling=False, gates=False
)
"""Rounds on weights and on what operators with weights read, and nowhere else: where these papers put them."""
_KEPT = 2**16
"""Values of one tensor and batch that a round starts from; more are thinned out evenly."""
TINY = 1e-8
"""The smallest scale: a step of training may carry a scale through zero."""


class LearnedRound(nn.Module, ABC):
    """A round whose grid learns, or whose values do.

    Law: `forward` gives values on `grid()`, equal in training and evaluation.
    """

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Return `x` on the grid, any shape, differentiable by `x` and by the grid's own parameters."""

    @abstractmethod
    def grid(self) -> Affine:
        """Return the grid as it stands."""


class QatMethod(ABC):
    """What rounds a method of quantization-aware training puts on weights and on activations."""

    @abstractmethod
    def on_weight(self, weight: Tensor, precision: Precision) -> LearnedRound:
        """Return the round for a weight, starting from the values of `weight`; its grid lies around zero."""

    @abstractmethod
    def on_activation(self, values: Float[Tensor, " count"], precision: Precision) -> LearnedRound:
        """Return the round for an activation, starting from `values` seen on the calibration data."""

    @abstractmethod
    def penalty(self, module: nn.Module) -> Float[Tensor, ""]:
        """Return what the method adds to the loss of a prepared module."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A network that is trained with its rounds in place.

    `module` maps float32 pictures in [0, 1] to logits, as `graph` does; `rounds` names the submodule of each site.
    Train `module` in place, then ask for `converted`.
    """

    graph: Graph
    module: fx.GraphModule
    rounds: Mapping[Site, str | FloatType]

    def converted(self) -> tuple[Graph, Recipe]:
        """Return the float graph as trained, batch norms folded, and the recipe that puts it on the learned grids.

        `realise` of the two computes what `module` does in eval mode. A batch norm behind a rounded weight goes into
        weight and scale of each channel alike, so values stay on the grid.
        """
        whole = trained(self.graph, self.module)
        named, folded = operators(whole), fold_batch_norm(whole)
        edits: list[Edit] = []
        for site, name in self.rounds.items():
            if isinstance(name, FloatType):
                edits.append(Round(site, name))
                continue
            learned = self.module.get_submodule(name)
            assert isinstance(learned, LearnedRound)
            if site.port == "weight":
                edits += _on_grid(whole, named[site.operator], site, learned, set(operators(folded)))
            else:
                edits.append(Round(site, learned.grid()))
        return folded, Recipe(tuple(edits), signature(folded))


def placed(
    graph: Graph, rules: PlacementRules, bits: Bits, *, ends: Ends = "8", keep: Iterable[str] = ()
) -> dict[Site, Precision]:
    """Return what `place` asks of the sites of `graph` once its batch norms are folded.

    `ends` is what the first and the last operator with weights get: at least 8 bits, as is usual in this field, the
    same bits as all others, or float. Raises BadInput as `place` does.
    """
    if ends not in get_args(Ends):
        raise unknown_name("choice for the ends", ends, get_args(Ends))
    folded = fold_batch_norm(graph)
    whole = place(folded, rules, bits, keep=keep)
    weighted = [name for name, node in operators(folded).items() if op_name(node) in WEIGHTED]
    if ends == "8" or not weighted:
        return whole
    wished = str(bits) if ends == "same" else "float32"
    names = [name for name in dict.fromkeys((weighted[0], weighted[-1])) if site_of(name, "weight") in whole]
    found = place(folded, rules, bits, keep=[*(f"{escape(name)}={wished}" for name in names), *keep])
    # The output of a float operator may be what the next one reads.
    outputs = {site_of(name, "output") for name in names}
    return found | {site: wanted for site, wanted in whole.items() if site in outputs - set(found)}


def prepare(
    method: QatMethod,
    graph: Graph,
    calibration: Sequence[Inputs],
    precision: Mapping[Site, Precision],
    *,
    norms: Norms = "live",
) -> Prepared:
    """Return a trainable copy of `graph` with a learned round at each site of `precision`.

    `graph` keeps its batch norms; `precision` is what `place` asks of `fold_batch_norm(graph)`: a round on the output
    of a convolution stands behind its batch norm. Activations are looked at on `calibration`, in the float graph. The
    graph is unchanged. Raises BadInput without calibration data, and for weights asked for off zero.
    """
    if not calibration:
        raise no_calibration()
    module = trainable(graph, norms=norms)
    copies = {node.name: node for node in module.graph.nodes}
    places = _places(graph, precision)
    looked_at = {site: source(node, site.port) for site, node in places.items() if site.port != "weight"}
    values = _seen(graph, calibration, looked_at, precision)
    rounds: dict[Site, str | FloatType] = {}
    tied: dict[str, str] = {}
    for i, (site, wanted) in enumerate(precision.items()):
        node = copies[places[site].name]
        value = source(node, site.port)
        if wanted.float_type is not None:
            rounds[site] = FloatType(wanted.float_type)
            new = _called(module, value, torch.ops.seatrial.narrow_float.default, (wanted.float_type,))
        else:
            name = f"round{i}" if wanted.tie is None else tied.setdefault(wanted.tie, f"round{i}")
            if name == f"round{i}":
                module.add_submodule(name, _made(method, graph, places[site], site, wanted, values))
            rounds[site] = name
            new = _called(module, value, name)
        if site.port == "output":
            value.replace_all_uses_with(new, delete_user_cb=lambda user, new=new: user is not new)
        else:
            node.replace_input_with(value, new)
    module.graph.lint()
    return Prepared(graph, fx.GraphModule(module, module.graph).eval(), rounds)


def start_grid(values: Tensor, precision: Precision, ranges: Range) -> Affine:
    """Return the per-tensor grid that `ranges` chooses for values seen: sign, zero point and a first scale."""
    observed = Observed(counted=ranges.needs_counts)
    observed.see(values)
    return grid_for(*ranges.choose(observed, precision), precision)


def require_symmetric(precision: Precision) -> None:
    """Raise BadInput where a weight is asked for on a grid that does not lie around zero."""
    if not precision.symmetric or precision.signed is False:
        raise BadInput(f"a weight at {precision}", "a signed, symmetric grid", "ask for one, as `place` does")


def by_channel(values: Tensor, precision: Precision) -> Tensor:
    """Return the values of each grid as a row: one row, or one for each channel along the precision's axis."""
    return values.reshape(1, -1) if precision.axis is None else values.transpose(0, precision.axis).flatten(1)


def _made(
    method: QatMethod, graph: Graph, node: fx.Node, site: Site, wanted: Precision, values: Mapping[Site, Tensor]
) -> LearnedRound:
    if site.port != "weight":
        return method.on_activation(values[site], wanted)
    require_symmetric(wanted)
    # Without the lowest code, so that a batch norm of negative gain keeps values on the grid.
    return method.on_weight(attribute(graph.module, str(source(node, "weight").target)), replace(wanted, narrow=True))


def _places(graph: Graph, precision: Mapping[Site, Precision]) -> dict[Site, fx.Node]:
    """Return the operator of each site: for an output, the batch norm that will be folded into the operator."""
    named, folded = operators(graph), set(operators(fold_batch_norm(graph)))
    names = {node: name for name, node in named.items()}
    found = {}
    for site in precision:
        if site.operator not in named:
            raise BadInput(f"site '{site}'", "an operator of this graph", "place sites on this graph, folded")
        node = named[site.operator]
        readers = list(node.users)
        behind = site.port == "output" and len(readers) == 1 and names.get(readers[0]) not in {None, *folded}
        found[site] = readers[0] if behind else node
    return found


def _seen(
    graph: Graph, calibration: Sequence[Inputs], nodes: Mapping[Site, fx.Node], precision: Mapping[Site, Precision]
) -> dict[Site, Tensor]:
    """Return values of each tensor over all batches; sites that are tied share theirs."""
    kept: dict[fx.Node, list[Tensor]] = {node: [] for node in nodes.values()}
    watch(graph, calibration, {node: partial(_keep, parts) for node, parts in kept.items()})
    groups: dict[str, list[fx.Node]] = {}
    for site, node in nodes.items():
        groups.setdefault(precision[site].tie or str(site), []).append(node)
    return {
        site: torch.cat([part for node in groups[precision[site].tie or str(site)] for part in kept[node]])
        for site in nodes
    }


def _keep(parts: list[Tensor], value: Tensor) -> None:
    flat = value.detach().reshape(-1).float()
    low, high = torch.aminmax(flat)
    step = max(1, -(-flat.numel() // _KEPT))
    # An odd step meets all rows and columns of an even size; the ends are never thinned out.
    parts.append(torch.cat([flat[:: step | 1], low.reshape(1), high.reshape(1)]))


def _called(module: fx.GraphModule, value: fx.Node, target: str | OpOverload, more: tuple[str, ...] = ()) -> fx.Node:
    """Add a call of a submodule or an operator on `value`, right behind it."""
    behind = [node for node in module.graph.nodes if node.op == "placeholder"][-1]
    with module.graph.inserting_after(behind if value.op == "placeholder" else value):
        if isinstance(target, str):
            new = module.graph.call_module(target, (value, *more))
        else:
            new = module.graph.call_function(target, (value, *more))
    new.meta = dict(value.meta)
    return new


def _on_grid(graph: Graph, node: fx.Node, site: Site, learned: LearnedRound, folded: Set[str]) -> list[Edit]:
    """Return the weight on its grid and the grid, both with the gain of a batch norm that is folded."""
    weight = attribute(graph.module, str(source(node, "weight").target))
    grid = learned.grid()
    with torch.no_grad():
        rounded = learned(weight)
    norm = next(iter(node.users))
    if op_name(norm) == "batch_norm" and not _is_operator(graph, norm, folded):
        factor, _ = norm_affine(graph.module, norm)
        axis = 0 if grid.axis is None else grid.axis
        assert axis == 0
        rounded = (rounded.double() * factor.reshape(-1, *[1] * (weight.ndim - 1))).to(weight.dtype)
        scale = (grid.scale.double() * factor.abs()).float()
        scale = torch.where(scale < torch.finfo(torch.float32).tiny, torch.ones_like(scale), scale)
        grid = replace(grid, scale=scale, zero_point=torch.zeros_like(scale, dtype=torch.int64), axis=0)
    return [Replace(site, rounded.detach().clone()), Round(site, grid)]


def _is_operator(graph: Graph, node: fx.Node, names: Set[str]) -> bool:
    return any(other is node and name in names for name, other in operators(graph).items())
