"""The formulas of a systolic array: cycles, bytes and energy of one operator, computed and never measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np

UNIT_BITS = 8
"""Bits of the two operands that one unit of the array multiplies in one cycle."""
ACCUMULATOR_BITS = 32
MULTIPLY_PJ = 0.2
"""One product of 8 by 8 bits, 45 nm (Horowitz 2014)."""
ADD_PJ = 0.1
"""One addition of 32 bits, 45 nm (Horowitz 2014)."""
DRAM_PJ_PER_BYTE = (1300 + 2600) / 2 / 8
"""The middle of 1.3 to 2.6 nJ for 64 bits (Horowitz 2014)."""
_SRAM_KIB = (8, 32, 1024)
_SRAM_PJ_PER_64_BITS = (10, 20, 100)


@dataclass(frozen=True)
class Chip:
    """An output-stationary array of `rows` x `columns` units of 8 by 8 bits with two double buffers and a memory."""

    rows: int
    columns: int
    weight_buffer_bytes: int
    activation_buffer_bytes: int
    bandwidth_gb_s: float
    clock_mhz: float

    @property
    def bytes_per_cycle(self) -> float:
        """What the memory moves in one cycle of the array."""
        return 1000 * self.bandwidth_gb_s / self.clock_mhz


@dataclass(frozen=True)
class Product:
    """`groups` products of [rows, depth] by [depth, columns]: what an operator asks of the array.

    A convolution has output pixels as rows, a filter's window as depth, a group's filters as columns. `left` and
    `right` count the numbers of the two operands as they lie in memory, over all groups and not unfolded to windows.
    """

    groups: int
    rows: int
    depth: int
    columns: int
    left: int
    right: int


CONVOLUTIONS = {"conv1d", "conv2d", "conv3d"}
TRANSPOSED = {"conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}
ATTENTION = "scaled_dot_product_attention"
OPERANDS = {
    **dict.fromkeys((*CONVOLUTIONS, *TRANSPOSED, "linear", "matmul", "mm", "bmm", "mv"), (0, 1)),
    **dict.fromkeys(("addmm", "baddbmm"), (1, 2)),
    ATTENTION: (0, 1, 2),
}
"""Operators that run on the array, and which of their arguments are multiplied: the left one, then right ones."""
UNKNOWN = {
    "einsum",
    "tensordot",
    "bilinear",
    "dot",
    "addmv",
    "addbmm",
    "lstm",
    "gru",
    "rnn_tanh",
    "rnn_relu",
    "convolution",
}
"""Operators that multiply too, and that the model cannot cost."""


def products_of(kind: str, shapes: Sequence[Sequence[int]], output: Sequence[int]) -> tuple[Product, ...]:
    """Return the products of an operator of `OPERANDS`, from the shapes of the arguments named there and its output.

    A convolution is the product of its unfolded windows with its filters, one for each group. A transposed one
    multiplies each input pixel with the whole filter. Leading dimensions of a matrix product are groups, where the
    right operand has them too.
    """
    left, right = shapes[0], shapes[1]
    if kind in CONVOLUTIONS:
        groups = left[1] // right[1]
        rows = output[0] * prod(output[2:])
        return (_product(groups, rows, prod(right[1:]), right[0] // groups, left, right),)
    if kind in TRANSPOSED:
        groups = output[1] // right[1]
        return (_product(groups, left[0] * prod(left[2:]), right[0] // groups, prod(right[1:]), left, right),)
    if kind == "linear":
        return (_product(1, prod(left[:-1]), left[-1], right[0], left, right),)
    if kind == ATTENTION:
        groups, value = prod(output[:-2]), shapes[2]
        scores = _product(groups, left[-2], left[-1], right[-2], left, right)
        # The scores stay on the chip.
        return scores, replace(_product(groups, left[-2], value[-2], value[-1], left, value), left=0)
    columns = right[-1] if len(right) > 1 else 1
    if len(right) <= 2:
        return (_product(1, prod(left[:-1]), left[-1], columns, left, right),)
    rows = left[-2] if len(left) > 1 else 1
    broadcast = prod(output) // (rows * columns)
    return (_product(broadcast, rows, left[-1], columns, left, right),)


def _product(groups: int, rows: int, depth: int, columns: int, left: Sequence[int], right: Sequence[int]) -> Product:
    # No more than the product reads: a stride leaves pixels out.
    numbers = min(prod(left), groups * rows * depth), min(prod(right), groups * depth * columns)
    return Product(groups, rows, depth, columns, *numbers)


@dataclass(frozen=True)
class Widths:
    """Bits of a product's operands: `left` and `right` as multiplied, `left_stored` and `right_stored` in memory."""

    left: int
    right: int
    left_stored: int
    right_stored: int


@dataclass(frozen=True)
class OperatorCost:
    """What one operator costs on the modeled chip at one batch size.

    `weight_bytes` are the parameters that it reads, once; `traffic_bytes` all that moves between memory and chip.
    """

    cycles: int
    latency_ms: float
    energy_mj: float
    weight_bytes: int
    traffic_bytes: int


def folds(product: Product, chip: Chip) -> int:
    """Return how often the array is filled: a fold computes one tile of outputs of one group.

    A depthwise convolution has one column a group, so that a fold uses one column of the array.
    """
    return product.groups * math.ceil(product.rows / chip.rows) * math.ceil(product.columns / chip.columns)


def depth_in_steps(depth: int, left_bits: int, right_bits: int) -> int:
    """Return the cycles in which one unit multiplies and sums `depth` pairs.

    A unit of 8 by 8 bits takes 64 / (left_bits * right_bits) narrower pairs in one cycle and sums them; each operand
    of 16 bits doubles its cycles.

    Source: Sharma et al. 2018 (Bit Fusion), section 2: 16 products of 2 by 2 bits, 4 of 4 by 4 or of 2 by 8.
    """
    return -(-depth * left_bits * right_bits // UNIT_BITS**2)


def compute_cycles(product: Product, chip: Chip, left_bits: int, right_bits: int) -> int:
    """Return the cycles of the array, folds one after another: (2 R + C + T - 2) each, with R x C units.

    Source: Samajdar et al. 2020, the runtime of one array: R + C - 2 cycles of skew, T of products, R to drain.
    Departures: T is shorter or longer by the operands' bits, see `depth_in_steps`.
    """
    steps = depth_in_steps(product.depth, left_bits, right_bits)
    return folds(product, chip) * (2 * chip.rows + chip.columns + steps - 2)


def reads(product: Product, chip: Chip, left_bits: int, right_bits: int) -> tuple[int, int]:
    """Return how often the left and the right operand come from memory, in the order of tiles that moves least.

    A tile has what one fold reads of an operand, at full depth. Half of a buffer holds tiles while the other half is
    filled. Whole right tiles stay while all left tiles pass, or left tiles while the right ones pass; where none fits,
    every fold reads both.

    Departures: rows of pixels that two left tiles share are not read twice.
    """
    down, across = math.ceil(product.rows / chip.rows), math.ceil(product.columns / chip.columns)
    numbers = product.depth * min(chip.columns, product.columns)
    right_fit = chip.weight_buffer_bytes // 2 // bytes_of(numbers, right_bits)
    numbers = math.ceil(product.left * min(chip.rows, product.rows) / (product.groups * product.rows))
    left_fit = chip.activation_buffer_bytes // 2 // bytes_of(max(numbers, 1), left_bits)
    orders = [(across, down)]
    if right_fit:
        orders.append((math.ceil(across / right_fit), 1))
    if left_fit:
        orders.append((1, math.ceil(down / left_fit)))
    left_bytes, right_bytes = bytes_of(product.left, left_bits), bytes_of(product.right, right_bits)
    return min(orders, key=lambda order: order[0] * left_bytes + order[1] * right_bytes)


def sram_pj_per_byte(buffer_bytes: int) -> float:
    """Return the energy of reading one byte of a buffer of this size.

    Source: Horowitz 2014: 10, 20 and 100 pJ for 64 bits of 8 kB, 32 kB and 1 MB; straight lines between them (and
    beyond them) in the logarithms of size and energy.
    """
    size, sizes = math.log(buffer_bytes / 1024), np.log(_SRAM_KIB)
    energies = np.log(_SRAM_PJ_PER_64_BITS)
    first = 0 if size < sizes[1] else 1
    slope = (energies[first + 1] - energies[first]) / (sizes[first + 1] - sizes[first])
    return math.exp(energies[first] + slope * (size - sizes[first])) / 8


def bytes_of(numbers: int, bits: int) -> int:
    """Return the bytes of packed numbers, rounded up."""
    return -(-numbers * bits // 8)


def cost(
    chip: Chip, products: tuple[tuple[Product, Widths], ...], *, weight_bytes: int, other_bytes: int
) -> OperatorCost:
    """Return the cost of an operator: its products, and `other_bytes` that it reads and writes besides their operands.

    Without products it is a vector operator, which waits for its bytes alone. With double buffering a product lasts as
    long as the slower of array and memory.

    Energy: each product counts a multiplication, in proportion to the product of its widths, and a 32-bit addition;
    operands are read from their buffers once a fold; each byte from or to memory passes a buffer once, the dearer one.

    Source: Horowitz 2014 (45 nm); that 32 by 32 bits cost 3.1 pJ, 15.5 times as much as 8 by 8, bears the proportion
    out. Departures: no leakage, no control, no energy of the vector operators' arithmetic.
    """
    left_pj, right_pj = sram_pj_per_byte(chip.activation_buffer_bytes), sram_pj_per_byte(chip.weight_buffer_bytes)
    cycles, traffic, energy_pj = 0, other_bytes, 0.0
    for product, widths in products:
        cycles += compute_cycles(product, chip, widths.left, widths.right)
        left_reads, right_reads = reads(product, chip, widths.left_stored, widths.right_stored)
        traffic += left_reads * bytes_of(product.left, widths.left_stored)
        traffic += right_reads * bytes_of(product.right, widths.right_stored)
        pairs = product.groups * product.rows * product.depth * product.columns
        energy_pj += pairs * (MULTIPLY_PJ * widths.left * widths.right / UNIT_BITS**2 + ADD_PJ)
        down, across = math.ceil(product.rows / chip.rows), math.ceil(product.columns / chip.columns)
        passed = across * product.groups * product.rows * product.depth
        energy_pj += bytes_of(passed, widths.left_stored) * left_pj
        passed = down * product.groups * product.depth * product.columns
        energy_pj += bytes_of(passed, widths.right_stored) * right_pj
    energy_pj += traffic * (DRAM_PJ_PER_BYTE + max(left_pj, right_pj))
    cycles = max(cycles, math.ceil(traffic / chip.bytes_per_cycle))
    return OperatorCost(cycles, cycles / (1000 * chip.clock_mhz), energy_pj * 1e-9, weight_bytes, traffic)
