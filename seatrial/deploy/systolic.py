"""A systolic array that is not here, as a target: PyTorch answers for it and a model tells its latency."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses import FakeTensorMode

from seatrial.core.carrying import carries
from seatrial.core.further_rounds import ROUNDS
from seatrial.core.graph import Graph, from_program
from seatrial.core.placement import PlacementRules
from seatrial.core.precision import Bits
from seatrial.core.predictor import Predictor
from seatrial.core.realise import tensor_inputs
from seatrial.core.sites import op_name, operators
from seatrial.core.target import Artefact, Latency, Target, Timing
from seatrial.deploy.systolic_model import (
    ACCUMULATOR_BITS,
    OPERANDS,
    UNKNOWN,
    Chip,
    OperatorCost,
    Product,
    Widths,
    bytes_of,
    cost,
    products_of,
)
from seatrial.deploy.torch_target import Torch
from seatrial.errors import BadInput, NotApplicable, unknown_name
from seatrial.models.program import open_program

WIDEST = 16
"""Bits of what no round stands on."""
_WIDTHS = (2, 4, 8, WIDEST)
_LENGTH = 128
"""Tokens of a sentence, as the stopwatch measures runtimes."""
_NAMES_ONLY = {
    *ROUNDS,
    *("view", "view_as", "reshape", "_unsafe_view", "flatten", "unflatten", "transpose", "permute", "t", "squeeze"),
    *("unsqueeze", "expand", "expand_as", "contiguous", "clone", "alias", "detach", "to", "_to_copy", "type_as"),
    *("dropout", "slice", "select", "narrow", "split", "split_with_sizes", "chunk", "unbind", "getitem", "movedim"),
}
"""Operators that only name values anew: addresses, not work."""
_MOVES = {"cat", "stack", "max_pool2d", "pad", "constant_pad_nd", "upsample_nearest2d", "roll", "pixel_shuffle"}
"""Operators that move values in the width that their readers want."""
_POINTWISE = {
    *("relu", "relu6", "hardtanh", "clamp", "clamp_min", "leaky_relu", "elu", "hardswish", "hardsigmoid", "sigmoid"),
    *("silu", "gelu", "mish", "tanh", "batch_norm", "add", "sub", "mul", "div", "neg", "exp", "sqrt"),
}
"""Operators that are computed as a result leaves the array, where they alone read it and nothing else."""
_PICKS = {"embedding", "index", "index_select", "gather", "take"}


def _rules() -> PlacementRules:
    return PlacementRules("systolic", "by-range", operator_outputs=False, attention_products="all")


@dataclass(frozen=True)
class Systolic(Target):
    """A modeled accelerator: an output-stationary array of 8-by-8-bit units; writes and opens `.pt2`.

    Two buffers (KiB, each filled in halves), a memory (GB/s) and a clock (MHz). `bit_widths` are the operand widths of
    the units: what is rounded to fewer bits takes the next larger width, what is not rounded takes 16. Every artefact
    says in its settings that it is `simulated`. Raises BadInput for options of no chip.

    Source: see `seatrial.deploy.systolic_model` and docs/systolic.md, which also says what is not modeled.
    """

    rows: int = 32
    columns: int = 32
    weight_buffer_kib: int = 256
    activation_buffer_kib: int = 256
    bandwidth_gb_s: float = 6.4
    clock_mhz: float = 500.0
    bit_widths: tuple[int, ...] = _WIDTHS
    placement: PlacementRules = field(default_factory=_rules)
    name: str = "systolic"

    def __post_init__(self) -> None:
        for option in ("rows", "columns", "weight_buffer_kib", "activation_buffer_kib"):
            value: object = getattr(self, option)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise BadInput(f"{option} {value}", "a whole number from 1 up", "describe a chip that exists")
        for option, rate in (("bandwidth_gb_s", self.bandwidth_gb_s), ("clock_mhz", self.clock_mhz)):
            if not 0 < rate < math.inf:  # refuses what is no number, too
                raise BadInput(f"{option} {rate}", "a number above 0", "describe a chip that exists")
        if not set(self.bit_widths) <= set(_WIDTHS) or WIDEST not in self.bit_widths:
            came = f"bit_widths {tuple(self.bit_widths)}"
            raise BadInput(came, "some of 2, 4, 8 and always 16", "add 16: operators without rounds run in it")

    @staticmethod
    def installed() -> bool:
        """Return True: the model needs nothing but torch."""
        return True

    @property
    def precisions(self) -> tuple[str, ...]:
        return ("float32",)

    @property
    def chip(self) -> Chip:
        """The numbers that the formulas read."""
        buffers = 1024 * self.weight_buffer_kib, 1024 * self.activation_buffer_kib
        return Chip(self.rows, self.columns, *buffers, self.bandwidth_gb_s, self.clock_mhz)

    def compile(self, graph: Graph, path: Path, *, bits: str) -> Artefact:
        if bits in ("bf16", "fp16"):
            raise NotApplicable(f"the systolic array multiplies integers, not {bits}")
        _check_known(operators(graph))
        artefact = Torch().compile(graph, path, bits=bits)
        what = (
            f"systolic {self.rows}x{self.columns}, {self.clock_mhz:g} MHz, {self.bandwidth_gb_s:g} GB/s, "
            f"{self.weight_buffer_kib}+{self.activation_buffer_kib} KiB, bits {self.bit_widths}"
        )
        return replace(artefact, settings={**artefact.settings, "simulated": what})

    def open(self, artefact: Artefact, *, threads: int) -> Predictor:
        return Torch().open(artefact, threads=threads)

    def time(self, artefacts: Sequence[Artefact], *, threads: int, batches: Sequence[int] = (1, 8)) -> list[Timing]:
        """Return modeled figures, with no run behind them: `runs` is 0 and all percentiles are the same.

        `load_ms` is the time in which the memory gives all parameters once, `peak_memory_bytes` are the buffers.
        Raises BadInput for another format than `.pt2`.
        """
        return [self._timing(artefact, threads, batches) for artefact in artefacts]

    def operator_costs(self, graph: Graph, bits: Mapping[str, Bits], batch: int) -> dict[str, OperatorCost]:
        """Return what each operator costs, by its name as in `seatrial.core.sites.operators`; the sum is the graph's.

        `bits` names what runs narrower than 16 bits; of a vector operator only the activations count. Left out are
        operators that cost nothing: rounds, views, and activations computed as a result leaves the array. Sentences
        have 128 tokens. Raises BadInput for a name that the graph does not have, NotApplicable for an operator that
        the model does not know.
        """
        return self.costs(Workload.of(graph, batch), bits)

    def costs(self, work: Workload, bits: Mapping[str, Bits]) -> dict[str, OperatorCost]:
        """Return what `operator_costs` does for a workload that serves many assignments of bits."""
        for name in bits:
            if name not in work.names:
                raise unknown_name("operator", name, work.names)
        widths = {work.names[name]: self._supported(wanted) for name, wanted in bits.items()}
        return work.costs(self.chip, widths)

    def _supported(self, bits: Bits) -> Bits:
        return Bits(self._width(bits.weights), self._width(bits.activations))

    def _width(self, bits: int) -> int:
        wide_enough = [width for width in self.bit_widths if width >= bits]
        if not wide_enough:
            raise BadInput(f"operands of {bits} bits", f"at most {WIDEST} bits", "round to fewer bits")
        return min(wide_enough)

    def _timing(self, artefact: Artefact, threads: int, batches: Sequence[int]) -> Timing:
        if artefact.format != "pt2":
            raise BadInput(f"a .{artefact.format} file for the systolic model", ".pt2", "compile the graph for it")
        names = artefact.settings.get("inputs", "").split(",")
        graph = from_program(open_program(artefact.path), names=names if names != [""] else None)
        bits, latencies, weight_bytes = bits_of(graph), [], 0
        for batch in batches:
            costs = self.operator_costs(graph, bits, batch).values()
            total_ms = sum(found.latency_ms for found in costs)
            latencies.append(Latency(total_ms, total_ms, total_ms, 0, batch, threads))
            weight_bytes = sum(found.weight_bytes for found in costs)
        largest = max(latencies, key=lambda latency: latency.batch)
        peak_bytes = 1024 * (self.weight_buffer_kib + self.activation_buffer_kib)
        load_ms = weight_bytes / (1e6 * self.bandwidth_gb_s)
        return Timing(tuple(latencies), 1000 * largest.batch / largest.median, load_ms, peak_bytes)


def bits_of(graph: Graph) -> dict[str, Bits]:
    """Return the bits in which a realised graph runs its operators, read from the rounds; 16 where one has none.

    Of a product that multiplies two activations `weights` is the right one. A vector operator is named where all that
    it reads is rounded, with `weights` 16; operators that move values run as their readers want.
    """
    found, constants = {}, _constants(graph)
    for name, node in operators(graph).items():
        kind = op_name(node)
        if node.op != "call_function" or kind in _NAMES_ONLY | _MOVES or carries(node) or node in constants:
            continue
        read = [_rounded_bits(value) for value in tensor_inputs(node) if value not in constants]
        if kind in OPERANDS:
            left, *right = [_rounded_bits(value) for value in _operands(node, kind)]
            bits = Bits(max(width or WIDEST for width in right), left or WIDEST)
        else:
            bits = Bits(WIDEST, max((width or WIDEST for width in read), default=WIDEST))
        if bits != Bits(WIDEST, WIDEST):
            found[name] = bits
    return found


def _rounded_bits(node: fx.Node) -> int | None:
    """Return the bits of the round that a value comes from, behind what passes values on; None where it has none."""
    kind = op_name(node)
    if kind == "qdq":
        low, high = node.args[3:5]
        assert isinstance(low, int)
        assert isinstance(high, int)
        return max(2, (high - low).bit_length())
    if kind in _NAMES_ONLY - ROUNDS or kind in ("cat", "stack") or carries(node):
        widths = [_rounded_bits(value) for value in tensor_inputs(node)[: None if kind in ("cat", "stack") else 1]]
        known = [width for width in widths if width is not None]
        return max(known) if known and len(known) == len(widths) else None
    return None


def _operands(node: fx.Node, kind: str) -> list[fx.Node]:
    operands = [node.args[index] for index in OPERANDS[kind]]
    return [operand for operand in operands if isinstance(operand, fx.Node)]


def _constants(graph: Graph) -> frozenset[fx.Node]:
    """Return the values that follow from parameters alone, so that they are computed ahead."""
    found: set[fx.Node] = set()
    for node in graph.nodes():
        if node.op == "get_attr" or (node.op == "call_function" and found.issuperset(node.all_input_nodes)):
            found.add(node)
    return frozenset(found)


def _check_known(named: Mapping[str, fx.Node]) -> None:
    for name, node in named.items():
        if op_name(node) in UNKNOWN:
            raise NotApplicable(f"the systolic model does not cost {op_name(node)} ({name})")


class _Shapes(fx.Interpreter):
    """Runs a graph on tensors without values and keeps what they look like."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.seen: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.seen[n] = super().run_node(n)
        return self.seen[n]


@dataclass(frozen=True, eq=False)
class Workload:
    """What the operators of a graph multiply and move at one batch size; nothing in it depends on bits."""

    names: Mapping[str, fx.Node]
    values: Mapping[fx.Node, Any]
    """Tensors without storage, for their shapes."""
    constants: frozenset[fx.Node]
    at_exit: Mapping[fx.Node, fx.Node]
    """Pointwise operators that are computed as the result of another one leaves, and that one."""

    @staticmethod
    def of(graph: Graph, batch: int) -> Workload:
        """Return the workload of a graph; raises NotApplicable for operators that multiply in unknown ways."""
        if batch < 1:
            raise BadInput(f"batch {batch}", "at least 1", "give a larger number")
        names = operators(graph)
        _check_known(names)
        shapes = _Shapes(graph.module)
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
            shapes.run(*(mode.from_tensor(tensor) for tensor in graph.example(batch, length=_LENGTH)))
        constants = _constants(graph)
        at_exit: dict[fx.Node, fx.Node] = {}
        for node in graph.nodes():
            read = [value for value in node.all_input_nodes if value not in constants]
            if op_name(node) not in _POINTWISE or len(read) != 1:
                continue
            before = _unrounded(read[0])
            makes = before.op == "call_function" and op_name(before) not in _NAMES_ONLY
            if makes and [reader for reader in _readers(before) if _makes_tensor(reader, shapes.seen)] == [node]:
                at_exit[node] = at_exit.get(before, before)
        return Workload(names, shapes.seen, constants, at_exit)

    def costs(self, chip: Chip, widths: Mapping[fx.Node, Bits]) -> dict[str, OperatorCost]:
        """Return the cost of each operator that costs anything, with operands in these widths and others in 16 bits."""
        stored = self._stored(widths)
        last = {head: node for node, head in self.at_exit.items()}
        followers: dict[fx.Node, list[fx.Node]] = {}
        for node, head in self.at_exit.items():
            followers.setdefault(head, []).append(node)
        found = {}
        for name, node in self.names.items():
            kind = op_name(node)
            idle = node.op != "call_function" or kind in _NAMES_ONLY or node in self.constants or node in self.at_exit
            if idle or not self._numbers(node):
                continue
            asked = widths.get(node, Bits(WIDEST, WIDEST))
            products = self._products(node, kind, asked, stored) if kind in OPERANDS else ()
            multiplied = _operands(node, kind) if products else []
            result = last.get(node, node)
            other_bytes = bytes_of(self._numbers(result), stored[result])
            weight_bytes = 0
            for value in multiplied:
                if value in self.constants:
                    weight_bytes += bytes_of(self._numbers(value), asked.weights)
            for reader in (node, *followers.get(node, ())):
                for value in reader.all_input_nodes:
                    if value in multiplied or (reader is not node and value not in self.constants):
                        continue
                    bits = stored[_written(value)]
                    if value in self.constants:
                        bits = ACCUMULATOR_BITS if products and reader is node else WIDEST
                        weight_bytes += bytes_of(self._numbers(value), bits)
                    numbers = self._numbers(value)
                    if kind in _PICKS:
                        numbers = min(numbers, self._numbers(result))
                    other_bytes += bytes_of(numbers, bits)
            found[name] = cost(chip, products, weight_bytes=weight_bytes, other_bytes=other_bytes)
        return found

    def _numbers(self, node: fx.Node) -> int:
        """Return how many numbers a value has in memory: what is expanded lies there once; 0 for no tensor."""
        value = self.values.get(node)
        parts = value if isinstance(value, list | tuple) else [value]
        numbers = sum(part.numel() for part in parts if isinstance(part, Tensor))
        if op_name(node) in _NAMES_ONLY and tensor_inputs(node):
            return min(numbers, self._numbers(tensor_inputs(node)[0]))
        return numbers

    def _products(
        self, node: fx.Node, kind: str, asked: Bits, stored: Mapping[fx.Node, int]
    ) -> tuple[tuple[Product, Widths], ...]:
        operands = _operands(node, kind)
        shapes = [tuple(self.values[operand].shape) for operand in operands]
        found = []
        for product, right in zip(products_of(kind, shapes, tuple(self.values[node].shape)), operands[1:], strict=True):
            left = operands[0]
            lies = [
                bits if value in self.constants else stored[_written(value)]
                for value, bits in ((left, asked.activations), (right, asked.weights))
            ]
            limits = min(product.left, self._numbers(left)), min(product.right, self._numbers(right))
            product = replace(product, left=limits[0], right=limits[1])
            found.append((product, Widths(asked.activations, asked.weights, *lies)))
        return tuple(found)

    def _stored(self, widths: Mapping[fx.Node, Bits]) -> dict[fx.Node, int]:
        """Return the bits in which each value lies in memory: as many as the reader that wants most."""
        stored: dict[fx.Node, int] = {}
        for node in reversed(list(self.values)):
            users = [user for user in node.users if _makes_tensor(user, self.values)]
            wanted = [self._wanted(user, node, widths, stored) for user in users]
            value = self.values[node]
            counted = isinstance(value, Tensor) and not value.is_floating_point()
            stored[node] = 8 * value.element_size() if counted else max(wanted, default=WIDEST)
        return stored

    def _wanted(
        self, user: fx.Node, value: fx.Node, widths: Mapping[fx.Node, Bits], stored: Mapping[fx.Node, int]
    ) -> int:
        kind = op_name(user)
        if user.op == "output":
            return WIDEST
        if kind in _NAMES_ONLY or user in self.at_exit or (user not in widths and (kind in _MOVES or carries(user))):
            return stored[user]
        bits = widths.get(user, Bits(WIDEST, WIDEST))
        if kind not in OPERANDS:
            return bits.activations
        left, *right = _operands(user, kind)
        as_left = bits.activations if value is left else 0
        as_right = bits.weights if value in right else 0
        return max(as_left, as_right) or WIDEST


def _unrounded(node: fx.Node) -> fx.Node:
    while op_name(node) in ROUNDS:
        node = tensor_inputs(node)[0]
    return node


def _written(node: fx.Node) -> fx.Node:
    """Return the value that lies in memory under this name."""
    while op_name(node) in _NAMES_ONLY and tensor_inputs(node):
        node = tensor_inputs(node)[0]
    return node


def _readers(node: fx.Node) -> list[fx.Node]:
    """Return who reads a value, behind its rounds."""
    return [reader for user in node.users for reader in (_readers(user) if op_name(user) in ROUNDS else [user])]


def _makes_tensor(reader: fx.Node, values: Mapping[fx.Node, Any]) -> bool:
    """Tell whether a reader takes a tensor's values: reading its size or checking it moves nothing."""
    return reader.op == "output" or isinstance(values.get(reader), Tensor | list | tuple)
