"""Where a round goes: sites of a graph for the rules of a runtime, so that integer arithmetic flows."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from torch import fx

from seatrial.core.carrying import carries
from seatrial.core.graph import Graph
from seatrial.core.placement import PlacementRules
from seatrial.core.precision import Bits, Precision
from seatrial.core.realise import tensor_inputs
from seatrial.core.sites import Site, op_name, operators, shape_of, site_of
from seatrial.errors import BadInput
from seatrial.quant.operator_kinds import (
    ACTIVATIONS,
    CLIPS,
    CONVOLUTIONS,
    POOLS,
    PRODUCTS,
    WEIGHTED,
    activations_read,
    after_relu,
    before_softmax,
    is_depthwise,
    is_gate,
    is_parameter,
    origin,
    rank,
)

Wanted = Bits | str
"""What an operator runs in: integers, or a float type (`float32`, `bf16`, `fp16`)."""


def place(graph: Graph, rules: PlacementRules, bits: Bits, *, keep: Iterable[str] = ()) -> dict[Site, Precision]:
    """Return what is asked of each site so that integers flow on a runtime with these `rules`.

    Rounds stand on the producer's output, one for all its readers; on each reader's edge where some reader stays
    float. The first and the last weighted operator keep 8 bits when `bits` asks for fewer; a tensor that operators of
    different bits read gets the most. `keep` holds `PATTERN[=PRECISION]`: operators whose name or module path matches
    the glob run in that precision (`w8a8`, `8`, `bf16`, `fp16`; `float32` when none is given), and so do sites, for
    which `PATH/OP#N:PORT` is matched too. Later patterns win. Raises BadInput for a pattern that matches nothing.

    Source: measured rules, docs/decisions/0002-placement.md, with NNCF's placement as the reference.
    """
    kept = [_Keep.parse(text) for text in keep]
    plan = _Plan.of(graph, rules, bits, kept)
    precision = {**_weights(plan), **_activations(plan)}
    for wish in kept:
        sites = [site for site in precision if wish.matches(str(site), site.operator, site.path)]
        if not sites and not any(wish.takes(name) for name in plan.known):
            raise _no_match(wish, plan)
        for site in sites:
            new = _changed(precision[site], wish.wanted, site.port == "weight")
            if new is None:
                del precision[site]
            else:
                precision[site] = new
    return precision


def place_operators(graph: Graph, rules: PlacementRules, wanted: Mapping[str, Wanted]) -> dict[Site, Precision]:
    """Return what is asked of each site when these operators run in these precisions, and the rest in float.

    `place` decides by patterns, this by operator (as `quantizable` names them); rounds stand where `place` has them.
    Raises BadInput for an operator that these rules keep in float.
    """
    plan = _Plan.of(graph, rules, Bits(8, 8), (), asked=wanted)
    able = [plan.names[node] for node in plan.wanted]
    unknown = [name for name in wanted if name not in able]
    if unknown:
        known = ", ".join(able[:3])
        raise BadInput(f"operator '{unknown[0]}'", f"one that runs in integers, such as {known}", "leave it out")
    chosen = {node: wanted.get(plan.names[node], "float32") for node in plan.wanted}
    plan = replace(plan, wanted=chosen)
    return {**_weights(plan), **_activations(plan)}


def quantizable(graph: Graph, rules: PlacementRules, *, keep: Iterable[str] = ()) -> dict[str, fx.Node]:
    """Return the operators that may run in integers under these rules, by name and in execution order.

    Those that `keep` keeps in a float type (see `place`) are left out; raises BadInput for a pattern that matches none.
    """
    kept = [_Keep.parse(text) for text in keep]
    plan = _Plan.of(graph, rules, Bits(8, 8), kept)
    for wish in kept:
        if not any(wish.takes(name) for name in plan.known):
            raise _no_match(wish, plan)
    return {plan.names[node]: node for node in plan.wanted if plan.in_integers(node)}


@dataclass(frozen=True)
class _Keep:
    text: str
    pattern: str
    wanted: Wanted

    @staticmethod
    def parse(text: str) -> _Keep:
        pattern, _, wanted = text.partition("=")
        if not pattern:
            raise BadInput(f"--keep '{text}'", "PATTERN[=PRECISION]", "name operators, for example 'blocks.0.*'")
        if wanted in ("", "float32", "bf16", "fp16"):
            return _Keep(text, pattern, wanted or "float32")
        return _Keep(text, pattern, Bits.parse(f"w{wanted}a{wanted}" if wanted.isdigit() else wanted))

    def matches(self, *names: str) -> bool:
        return any(fnmatchcase(name, self.pattern) for name in names)

    def takes(self, operator: str) -> bool:
        return self.matches(operator, operator.rsplit("/", 1)[0])


@dataclass(frozen=True)
class _Plan:
    """What each operator that need not be float runs in."""

    rules: PlacementRules
    names: Mapping[fx.Node, str]
    wanted: Mapping[fx.Node, Wanted]
    left: frozenset[fx.Node]
    """Convolutions that the runtime would compute in float whatever is rounded, so that their weights stay float."""
    ends: frozenset[fx.Node]
    """The first and the last weighted operator."""

    @staticmethod
    def of(
        graph: Graph, rules: PlacementRules, bits: Bits, kept: Sequence[_Keep], *, asked: Container[str] = ()
    ) -> _Plan:
        """Return the plan with `bits` everywhere but for `kept`; operators of both, and `asked`, are never left out."""
        names = {node: name for name, node in operators(graph).items()}
        weighted = [node for node in names if op_name(node) in WEIGHTED and is_parameter(node.args[1])]
        ends = frozenset({weighted[0], weighted[-1]} if weighted else ())
        wide = Bits(max(8, bits.weights), max(8, bits.activations))
        named = {node for node, name in names.items() if name in asked or any(wish.takes(name) for wish in kept)}
        left: frozenset[fx.Node] = frozenset()
        while True:
            integer = set(weighted) - left
            for node in names:
                if _joins_integers(node, integer, rules):
                    integer.add(node)
            everything = {node: wide if node in ends else bits for node in names if node in integer}
            plan = _Plan(rules, names, everything, left, ends)
            stuck = {node for node in everything if node not in named and _runs_in_float(plan, node)}
            if not stuck:
                break
            left |= stuck
        wishes = {node: wish.wanted for node in everything for wish in kept if wish.takes(names[node])}
        return replace(plan, wanted={**everything, **wishes})

    @property
    def known(self) -> list[str]:
        """The names of the operators that patterns may match."""
        return [self.names[node] for node in self.names if node in self.wanted or node in self.left]

    @property
    def unkept(self) -> _Plan:
        """The plan in which everything runs in integers that may."""
        return replace(self, wanted=dict.fromkeys(self.wanted, Bits(8, 8)))

    def in_integers(self, node: fx.Node) -> bool:
        return isinstance(self.wanted.get(node), Bits)

    def is_weighted(self, node: fx.Node) -> bool:
        return op_name(node) in WEIGHTED and node in self.wanted


def _no_match(wish: _Keep, plan: _Plan) -> BadInput:
    known = ", ".join(plan.known[:3])
    return BadInput(f"--keep '{wish.text}'", f"a glob that matches an operator such as {known}", "correct it")


def _joins_integers(node: fx.Node, integer: set[fx.Node], rules: PlacementRules) -> bool:
    """Tell whether an operator without weights should run in integers, given those before it."""
    kind, read = op_name(node), activations_read(node)
    if kind in PRODUCTS and len(read) == 2 and rules.attention_products != "none":
        return rules.attention_products == "all" or before_softmax(node)
    if not read or rank(node) not in (2, 4):
        return False
    # Behind a linear operator or a product stands a residual stream or an attention mask: both stay float.
    origins = [origin(value) for value in read]
    behind = any(origin in integer and op_name(origin) not in {"linear", *PRODUCTS} for origin in origins)
    if kind == "add" and len(read) == 2 and rules.residual_adds:
        return behind and rank(node) == 4
    if kind == "mul" and len(read) == 2 and rules.gates and rank(node) == 4:
        return any(is_gate(value) for value in read)
    return kind in POOLS and rules.pooling and behind and rank(read[0]) == 4


def _producers(plan: _Plan, node: fx.Node) -> list[fx.Node]:
    """Return the tensors whose round serves a reader of `node`: behind what carries values, all parts of a `cat`.

    Where outputs are rounded a `cat` itself is one of them, and an upsampling: with the grid of its parts, so that no
    value changes. A round right behind a `roll`, which is exported as slices and a concatenation, would be moved to the
    slices and the reader run in float: there it stands at the reader.
    """
    found = _climbed(plan, node)
    return [node] if [op_name(one) for one in found] == ["roll"] else found


def _climbed(plan: _Plan, node: fx.Node) -> list[fx.Node]:
    read = tensor_inputs(node)
    climbs = all(value.op not in ("get_attr", "placeholder") for value in read) and _carries(node)
    if not read or not climbs or not _all_take_rounded(plan, node):
        return [node]
    if op_name(node) != "cat":
        producers = _climbed(plan, read[0])
        return [*producers, node] if plan.rules.operator_outputs and _stops_rounds(node) else producers
    parts = [producer for value in read for producer in _climbed(plan, value)]
    return [*parts, node] if plan.rules.operator_outputs else parts


def _carries(node: fx.Node) -> bool:
    """Tell whether the values of `node` are those of what it reads, and as many of them."""
    if op_name(node) == "cat":
        return rank(node) == 4
    return carries(node)


def _stops_rounds(node: fx.Node) -> bool:
    """Tell whether ONNX Runtime needs a round behind an operator to see that its readers get integers.

    It looks for rounds behind reshapes and transposes, and merges the padding of a convolution into that.
    """
    if op_name(node) in ("pad", "constant_pad_nd"):
        grows = shape_of(node) != shape_of(tensor_inputs(node)[0])
        return grows and any(op_name(user) not in CONVOLUTIONS for user in node.users)
    return op_name(node) == "upsample_nearest2d"


def _all_take_rounded(plan: _Plan, node: fx.Node) -> bool:
    return all(_takes_rounded(plan, reader) for reader in node.users)


def _takes_rounded(plan: _Plan, reader: fx.Node) -> bool:
    """Tell whether a reader may get rounded values because all that is made of them is rounded anyway."""
    if plan.in_integers(reader) or reader in plan.left or op_name(reader) == "sym_size":
        return True
    if reader in plan.wanted:  # kept float
        return False
    if _carries(reader):
        return bool(reader.users) and _all_take_rounded(plan, reader)
    # Reading a rounded tensor costs accuracy only where the reader keeps it: an activation between two integer
    # operators is fed by a round on some runtimes (ONNX Runtime wants one on every operator's output).
    return op_name(reader) in ACTIVATIONS


def _weights(plan: _Plan) -> dict[Site, Precision]:
    found = {}
    for node, wanted in plan.wanted.items():
        if not plan.is_weighted(node) or wanted == "float32":
            continue
        site = site_of(plan.names[node], "weight")
        axis = 1 if op_name(node) == "conv_transpose2d" else 0
        if isinstance(wanted, str):
            found[site] = Precision(16, signed=True, symmetric=True, axis=axis, float_type=wanted)
            continue
        # Kernels of depthwise convolutions widen each product by itself and do not saturate.
        capped = wanted.weights == 8 and not is_depthwise(node)
        width = min(wanted.weights, plan.rules.weight_bits_cap) if capped else wanted.weights
        found[site] = Precision(width, signed=True, symmetric=True, axis=axis, narrow=True)
    return found


def _activations(plan: _Plan) -> dict[Site, Precision]:
    found: dict[Site, Precision] = {}
    ties: list[set[Site]] = []
    for node, wanted in plan.wanted.items():
        if not isinstance(wanted, Bits):
            continue
        base = _asked_by(plan, node, wanted)
        read = [tensor_inputs(node)[0]] if plan.is_weighted(node) else activations_read(node)
        for value in read:
            producers = _producers(plan, value)
            sites = [site for producer in producers for site in _sites_on(plan, producer)]
            for site in sites:
                found[site] = _both(found[site], base) if site in found else base
            if len(producers) > 1:
                ties.append(set(sites))
        if plan.rules.operator_outputs and _has_integer_output(node) and _output_wanted(node):
            for site in _sites_on(plan, after_relu(node)):
                found[site] = _both(found[site], base) if site in found else base
    for group in _merged(ties):
        first = min(group)
        common = found[first]
        for site in group:
            common = _both(common, found[site])
        for site in group:
            found[site] = replace(common, tie=f"cat of {first}")
    for node, wanted in plan.wanted.items():
        edge = site_of(plan.names[node], "input0")
        source = tensor_inputs(node)[0]
        rounded = any(site in found for site in [edge, *_sites_on(plan, source)])
        if plan.is_weighted(node) and wanted in ("bf16", "fp16") and not rounded:
            found[edge] = Precision(16, float_type=str(wanted))
    return found


def _asked_by(plan: _Plan, reader: fx.Node, wanted: Bits) -> Precision:
    """Return what a reader asks of the tensors that it reads."""
    rules = plan.rules
    if op_name(reader) in PRODUCTS and rules.products_around_zero:
        return Precision(wanted.activations, signed=None, symmetric=True)
    sign = rules.linear_sign if op_name(reader) == "linear" else rules.activation_sign
    unsigned = rules.activation_sign == "unsigned" or sign == "unsigned"
    return Precision(wanted.activations, signed=False if unsigned else None)


def _both(one: Precision, other: Precision) -> Precision:
    """Return what serves two readers: the most bits, and zero point 0 where either asks for it."""
    signed = False if one.signed is False and other.signed is False else None
    return replace(one, bits=max(one.bits, other.bits), signed=signed, symmetric=one.symmetric or other.symmetric)


def _merged(groups: Iterable[set[Site]]) -> list[set[Site]]:
    """Join groups that share a site: a tensor in two concatenations ties both."""
    joined: list[set[Site]] = []
    for group in groups:
        apart = [other for other in joined if not other & group]
        joined = [*apart, group.union(*(other for other in joined if other & group))]
    return joined


def _has_integer_output(node: fx.Node) -> bool:
    """Tell whether there are kernels that write integers: linear operators of more than two dimensions write float."""
    return op_name(node) == "conv1d" or rank(node) in (2, 4)


def _output_wanted(node: fx.Node) -> bool:
    """Outputs of the network stay float; pools keep the grid of what they read."""
    return op_name(node) not in POOLS and not any(user.op == "output" for user in node.users)


def _sites_on(plan: _Plan, node: fx.Node) -> list[Site]:
    """Return the output site of a tensor, or one site for each integer reader where another reader stays float."""
    if node not in plan.names:
        return []
    if _all_take_rounded(plan, node) or _must_write_codes(plan, node):
        return [site_of(plan.names[node], "output")]
    sites = []
    for reader in node.users:
        if reader in plan.names and op_name(reader) not in ACTIVATIONS and _takes_rounded(plan, reader):
            port = f"input{tensor_inputs(reader).index(node)}"
            sites.append(site_of(plan.names[reader], port))
    return sites


def _must_write_codes(plan: _Plan, node: fx.Node) -> bool:
    """Tell whether a convolution, or the ReLU behind it, writes integers though an operator that was kept reads it.

    Without a round on its output such a runtime would compute it in float, its own rounds for nothing.
    """
    inner = node.args[0] if op_name(node) in CLIPS else node
    if not plan.rules.operator_outputs or not isinstance(inner, fx.Node):
        return False
    if op_name(inner) not in ("conv2d", "conv1d") or not plan.in_integers(inner) or not _output_wanted(node):
        return False
    return _all_take_rounded(plan.unkept, node)


def _runs_in_float(plan: _Plan, node: fx.Node) -> bool:
    """Tell whether a convolution can have no round on its output where integer kernels stand between two rounds.

    The plan has to be one in which nothing was kept.
    """
    if not plan.rules.operator_outputs or op_name(node) not in CONVOLUTIONS:
        return False
    written = after_relu(node)
    readers = list(written.users)
    if len(readers) == 1 and op_name(readers[0]) == "batch_norm":  # becomes limits of the convolution
        written = readers[0]
    return not (_output_wanted(written) and _all_take_rounded(plan, written))


def _changed(old: Precision, wanted: Wanted, weight: bool) -> Precision | None:
    if wanted == "float32":
        return None
    if isinstance(wanted, str):
        return replace(old, float_type=wanted, tie=None)
    return replace(old, bits=wanted.weights if weight else wanted.activations, float_type=None)
