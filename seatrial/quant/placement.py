"""Where a round goes: sites of a graph for the rules of a runtime, so that integer arithmetic flows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from torch import fx

from seatrial.core.graph import Graph
from seatrial.core.placement import PlacementRules
from seatrial.core.precision import Bits, Precision
from seatrial.core.realise import tensor_inputs
from seatrial.core.sites import Site, op_name, operators, site_of
from seatrial.errors import BadInput

WEIGHTED = {"conv2d", "linear", "conv_transpose2d", "conv1d"}
ACTIVATIONS = {"relu", "hardtanh", "hardswish", "silu", "gelu", "leaky_relu", "hardsigmoid", "sigmoid", "elu", "mish"}
_CARRIES = {"max_pool2d", "flatten", "squeeze", "slice", "pad", "constant_pad_nd", "upsample_nearest2d"}
"""Operators that pass values on unchanged: a round before them holds behind them too."""
_POOLS = {"mean", "adaptive_avg_pool2d", "avg_pool2d"}


def place(graph: Graph, rules: PlacementRules, bits: Bits, *, keep: Iterable[str] = ()) -> dict[Site, Precision]:
    """Return what is asked of each site so that integers flow on a runtime with these `rules`.

    Rounds stand on the producer's output, one for all its readers; on each reader's edge where some reader stays
    float. The first and the last weighted operator keep 8 bits when `bits` asks for fewer. `keep` holds
    `PATTERN[=PRECISION]`: operators whose name matches the glob stay float, or get that precision (`w8a8`, `8`,
    `bf16`, `fp16`, `float32`). Raises BadInput for a pattern that matches nothing.

    Source: measured rules, docs/decisions/0002-placement.md, with NNCF's placement as the reference.
    """
    plan = _Plan.of(graph, rules)
    precision = _weights(plan, rules, bits)
    precision.update(_activations(plan, rules, bits))
    return _kept(plan, precision, list(keep))


@dataclass(frozen=True)
class _Plan:
    """Which operators run in integers, and which tensors they read."""

    names: Mapping[fx.Node, str]
    weighted: list[fx.Node]
    integer: set[fx.Node]

    @staticmethod
    def of(graph: Graph, rules: PlacementRules) -> _Plan:
        names = {node: name for name, node in operators(graph).items()}
        weighted = [node for node in names if op_name(node) in WEIGHTED and _is_parameter(node.args[1])]
        integer = set(weighted)
        for node in names:
            if _joins_integers(node, integer, rules):
                integer.add(node)
        return _Plan(names, weighted, integer)

    def ends(self) -> set[fx.Node]:
        """The first and the last weighted operator."""
        return {self.weighted[0], self.weighted[-1]} if self.weighted else set()


def _is_parameter(argument: object) -> bool:
    return isinstance(argument, fx.Node) and argument.op == "get_attr"


def _rank(node: fx.Node) -> int:
    value = node.meta.get("val")
    return len(value.shape) if hasattr(value, "shape") else -1


def _activations_read(node: fx.Node) -> list[fx.Node]:
    return [value for value in tensor_inputs(node) if value.op != "get_attr"]


def _joins_integers(node: fx.Node, integer: set[fx.Node], rules: PlacementRules) -> bool:
    """Tell whether an operator without weights should run in integers, given those before it."""
    kind, read = op_name(node), _activations_read(node)
    if kind == "matmul" and len(read) == 2 and rules.attention_products != "none":
        return rules.attention_products == "all" or _before_softmax(node)
    if not read or _rank(node) not in (2, 4):
        return False
    behind = any(_origin(value) in integer for value in read)
    if kind == "add" and len(read) == 2 and rules.residual_adds:
        return behind and _rank(node) == 4
    if kind == "mul" and len(read) == 2 and rules.gates and _rank(node) == 4:
        return any(_is_gate(value) for value in read)
    return kind in _POOLS and rules.pooling and behind and _rank(read[0]) == 4


def _is_gate(node: fx.Node) -> bool:
    shape = node.meta["val"].shape
    return len(shape) == 4 and shape[2] == 1 and shape[3] == 1


def _before_softmax(node: fx.Node) -> bool:
    for _ in range(6):
        users = list(node.users)
        if any(op_name(user) in ("softmax", "_softmax") for user in users):
            return True
        follow = [user for user in users if op_name(user) in ("add", "mul", "div", "view", "masked_fill", "where", "to")]
        if not follow:
            return False
        node = follow[0]
    return False


def _origin(node: fx.Node) -> fx.Node:
    """Return the operator that computed a value, behind activations and operators that carry values on."""
    while op_name(node) in _CARRIES | ACTIVATIONS | {"cat", "batch_norm"}:
        read = _activations_read(node)
        if not read:
            return node
        node = read[0]
    return node


def _producers(node: fx.Node) -> list[fx.Node]:
    """Return the tensors whose round serves a reader of `node`: behind what carries values, all parts of a `cat`."""
    kind, read = op_name(node), tensor_inputs(node)
    flattens = kind in ("view", "reshape") and _rank(node) == 2 and _rank(read[0]) == 4
    if kind == "cat" and _rank(node) == 4 and all(value.op != "get_attr" for value in read):
        return [producer for value in read for producer in _producers(value)]
    if (kind in _CARRIES or flattens) and read and read[0].op != "placeholder" and not _pads_nonzero(node):
        return _producers(read[0])
    return [node]


def _pads_nonzero(node: fx.Node) -> bool:
    if op_name(node) not in ("pad", "constant_pad_nd"):
        return False
    values = [argument for argument in node.args[2:] if isinstance(argument, int | float)]
    return any(values) or any(isinstance(argument, str) and argument != "constant" for argument in node.args[2:])


def _weights(plan: _Plan, rules: PlacementRules, bits: Bits) -> dict[Site, Precision]:
    found = {}
    for node in plan.weighted:
        width = max(bits.weights, 8) if node in plan.ends() else bits.weights
        width = min(width, rules.weight_bits_cap) if width == 8 else width
        axis = 1 if op_name(node) == "conv_transpose2d" else 0
        site = site_of(plan.names[node], "weight")
        found[site] = Precision(width, signed=True, symmetric=True, axis=axis, narrow=True)
    return found


def _activations(plan: _Plan, rules: PlacementRules, bits: Bits) -> dict[Site, Precision]:
    ends, found = plan.ends(), dict[Site, Precision]()
    base = Precision(bits.activations)
    if rules.activation_sign == "unsigned":
        base = replace(base, signed=False)

    def ask(node: fx.Node, wide: bool, tie: str | None) -> None:
        wanted = replace(base, bits=max(8, bits.activations) if wide else bits.activations, tie=tie)
        for site in _sites_on(plan, node):
            old = found.get(site)
            if old is not None:
                wanted = replace(wanted, bits=max(old.bits, wanted.bits), tie=old.tie or wanted.tie)
            found[site] = wanted

    for node in plan.names:
        if node not in plan.integer:
            continue
        read = [tensor_inputs(node)[0]] if node in plan.weighted else _activations_read(node)
        for value in read:
            producers = _producers(value)
            tie = f"cat of {plan.names[producers[0]]}" if len(producers) > 1 else None
            for producer in producers:
                ask(producer, node in ends, tie)
        if rules.operator_outputs and _rank(node) in (2, 4) and _output_wanted(node):
            ask(_after_relu(node), node in ends, None)
    return found


def _output_wanted(node: fx.Node) -> bool:
    """Outputs of the network stay float; pools keep the grid of what they read."""
    return op_name(node) not in _POOLS and not any(user.op == "output" for user in node.users)


def _after_relu(node: fx.Node) -> fx.Node:
    users = list(node.users)
    return users[0] if len(users) == 1 and op_name(users[0]) in ("relu", "hardtanh") else node


def _sites_on(plan: _Plan, node: fx.Node) -> list[Site]:
    """Return the output site of a tensor, or one site for each integer reader where another reader stays float."""
    if node not in plan.names:
        return []
    readers = list(node.users)
    if all(_takes_rounded(plan, reader) for reader in readers):
        return [site_of(plan.names[node], "output")]
    sites = []
    for reader in readers:
        if reader in plan.names and _takes_rounded(plan, reader):
            port = f"input{tensor_inputs(reader).index(node)}"
            sites.append(site_of(plan.names[reader], port))
    return sites


def _takes_rounded(plan: _Plan, reader: fx.Node) -> bool:
    if reader in plan.integer or op_name(reader) == "sym_size":
        return True
    if op_name(reader) in _CARRIES | {"cat", "view", "reshape"}:
        return bool(reader.users) and all(_takes_rounded(plan, user) for user in reader.users)
    # Reading a rounded tensor costs accuracy only where the reader keeps it: an activation between two integer
    # operators is fed by a round on some runtimes (ONNX Runtime wants one on every operator's output).
    return op_name(reader) in ACTIVATIONS


def _kept(plan: _Plan, precision: dict[Site, Precision], keep: list[str]) -> dict[Site, Precision]:
    for text in keep:
        pattern, _, wanted = text.partition("=")
        matched = [site for site in precision if _matches(site, pattern)]
        if not matched:
            known = ", ".join(list(plan.names.values())[:3])
            raise BadInput(f"--keep '{text}'", f"a glob that matches an operator such as {known}", "correct the glob")
        for site in matched:
            new = _changed(precision[site], wanted or "float32", site.port == "weight")
            if new is None:
                del precision[site]
            else:
                precision[site] = new
    return precision


def _matches(site: Site, pattern: str) -> bool:
    return any(fnmatchcase(text, pattern) for text in (str(site), site.operator, site.path))


def _changed(old: Precision, wanted: str, weight: bool) -> Precision | None:
    if wanted == "float32":
        return None
    if wanted in ("bf16", "fp16"):
        return replace(old, float_type=wanted)
    if wanted.isdigit():
        wanted = f"w{wanted}a{wanted}"
    bits = Bits.parse(wanted)
    return replace(old, bits=bits.weights if weight else bits.activations)
