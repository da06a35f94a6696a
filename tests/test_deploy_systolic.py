"""The systolic model: its cycles against a simulated array, its reads against counted ones, its laws on graphs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from deploy_graph import float_graph, quantized
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from seatrial.core.chance import generator
from seatrial.core.graph import Graph, capture
from seatrial.core.precision import Bits
from seatrial.core.realise import realise
from seatrial.core.sites import op_name, operators
from seatrial.core.target import Artefact
from seatrial.deploy.systolic import Systolic, Workload, bits_of
from seatrial.deploy.systolic_model import (
    OPERANDS,
    Chip,
    OperatorCost,
    Product,
    Widths,
    bytes_of,
    compute_cycles,
    cost,
    folds,
    products_of,
    reads,
    sram_pj_per_byte,
)
from seatrial.errors import BadInput, NotApplicable
from seatrial.quant.nearest import Nearest
from seatrial.quant.placement import place

PICTURES = torch.rand(5, 3, 12, 12, generator=torch.Generator().manual_seed(1))
WIDTHS = (2, 4, 8, 16)
SMALL = Chip(4, 5, 1024, 1024, 6.4, 500.0)


class Everything(nn.Module):
    """Dense, grouped, depthwise and transposed convolutions, a residual, pooling, attention, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8)
        self.depthwise, self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.up, self.down = nn.ConvTranspose2d(8, 4, 2, stride=2), nn.Conv2d(4, 8, 2, stride=2)
        self.qkv, self.head = nn.Linear(8, 24), nn.Linear(8, 4)
        self.layer_norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        y = self.grouped(nn.functional.relu6(self.depthwise(x))) + x
        y = self.down(self.up(nn.functional.max_pool2d(y.relu(), 2)))
        tokens = self.layer_norm(y.flatten(2).transpose(1, 2))
        query, key, value = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in self.qkv(tokens).chunk(3, -1))
        mixed = (query @ key.transpose(-1, -2) / 2).softmax(-1) @ value
        fused = nn.functional.scaled_dot_product_attention(query, key, mixed)
        return self.head(fused.transpose(1, 2).flatten(2).mean(1))


@pytest.fixture(scope="module")
def everything() -> Graph:
    torch.manual_seed(0)
    model = Everything().eval()
    return capture(model, torch.rand(2, 3, 12, 12))


@pytest.fixture(scope="module")
def work(everything: Graph) -> Workload:
    return Workload.of(everything, 2)


def figures(found: OperatorCost) -> tuple[float, ...]:
    return found.cycles, found.latency_ms, found.energy_mj, found.weight_bytes, found.traffic_bytes


def not_more(narrow: OperatorCost, wide: OperatorCost) -> bool:
    return all(a <= b * (1 + 1e-12) for a, b in zip(figures(narrow), figures(wide), strict=True))


# Cycles: a brute-force array in which numbers move one unit a cycle


def in_steps(left: np.ndarray, right: np.ndarray, left_bits: int, right_bits: int) -> list[tuple[list, list]]:
    """Return what one unit multiplies in each cycle: several narrow pairs, or one pair of bytes of wide numbers."""

    def parts(number: int, bits: int) -> list[int]:
        return [number // 256 * 256, number % 256] if bits == 16 else [number]

    pairs = [
        (a, b)
        for x, y in zip(left.tolist(), right.tolist(), strict=True)
        for a in parts(x, left_bits)
        for b in parts(y, right_bits)
    ]
    at_once = (8 // min(left_bits, 8)) * (8 // min(right_bits, 8))
    chunks = [pairs[i : i + at_once] for i in range(0, len(pairs), at_once)]
    return [([a for a, _ in chunk], [b for _, b in chunk]) for chunk in chunks]


def one_fold(left: np.ndarray, right: np.ndarray, chip: Chip, bits: tuple[int, int]) -> tuple[np.ndarray, int]:
    """Run [rows, depth] by [depth, columns] on the whole array, unused units fed with zeros; return sums and cycles."""
    rows, columns = chip.rows, chip.columns
    padded_left = np.zeros((rows, left.shape[1]), dtype=int)
    padded_left[: len(left)] = left
    padded_right = np.zeros((right.shape[0], columns), dtype=int)
    padded_right[:, : right.shape[1]] = right
    by_row = [in_steps(row, np.zeros_like(row), *bits) for row in padded_left]
    by_column = [in_steps(np.zeros_like(column), column, *bits) for column in padded_right.T]
    steps = len(by_row[0])
    at_left: list[list] = [[None] * columns for _ in range(rows)]
    at_top: list[list] = [[None] * columns for _ in range(rows)]
    sums, done = np.zeros((rows, columns), dtype=int), np.zeros((rows, columns), dtype=int)
    cycles = 0
    while not (done == steps).all():
        moved_left = [[None, *row[:-1]] for row in at_left]
        moved_top = [[None] * columns, *[list(row) for row in at_top[:-1]]]
        for r in range(rows):  # skewed: row r starts r cycles late
            if 0 <= cycles - r < steps:
                moved_left[r][0] = by_row[r][cycles - r][0]
        for c in range(columns):
            if 0 <= cycles - c < steps:
                moved_top[0][c] = by_column[c][cycles - c][1]
        at_left, at_top = moved_left, moved_top
        for r in range(rows):
            for c in range(columns):
                if at_left[r][c] is not None and at_top[r][c] is not None:
                    sums[r, c] += sum(a * b for a, b in zip(at_left[r][c], at_top[r][c], strict=True))
                    done[r, c] += 1
        cycles += 1
    drained = []
    for _ in range(rows):  # sums leave by the bottom edge, one row a cycle
        drained.append(sums[-1].copy())
        sums = np.vstack([np.zeros((1, columns), dtype=int), sums[:-1]])
        cycles += 1
    return np.array(drained[::-1])[: len(left), : right.shape[1]], cycles


@settings(max_examples=40, deadline=None)
@given(
    array=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    sizes=st.tuples(st.integers(1, 2), st.integers(1, 9), st.integers(1, 7), st.integers(1, 9)),
    bits=st.tuples(st.sampled_from(WIDTHS), st.sampled_from(WIDTHS)),
)
def test_cycles_are_those_of_a_simulated_array(
    array: tuple[int, int], sizes: tuple[int, int, int, int], bits: tuple[int, int]
) -> None:
    groups, rows, depth, columns = sizes
    chip = Chip(*array, 1024, 1024, 1.0, 1.0)
    rng = np.random.default_rng(0)
    cycles = 0
    for _ in range(groups):
        left = rng.integers(0, 2 ** bits[0], (rows, depth))
        right = rng.integers(0, 2 ** bits[1], (depth, columns))
        result = np.zeros((rows, columns), dtype=int)
        for top in range(0, rows, chip.rows):
            for side in range(0, columns, chip.columns):
                tile = (slice(top, top + chip.rows), slice(side, side + chip.columns))
                result[tile], took = one_fold(left[tile[0]], right[:, tile[1]], chip, bits)
                cycles += took
        assert np.array_equal(result, left @ right)
    product = Product(groups, rows, depth, columns, groups * rows * depth, groups * depth * columns)
    assert compute_cycles(product, chip, *bits) == cycles


@pytest.mark.parametrize(
    ("array", "sizes", "told"),
    [
        ((4, 5), (4, 7, 5), 13),
        ((4, 5), (13, 9, 11), 191),
        ((4, 5), (3, 6, 2), 12),
        ((32, 32), (784, 1152, 128), 121399),
    ],
)
def test_golden_cycles_of_scalesim(array: tuple[int, int], sizes: tuple[int, int, int], told: int) -> None:
    """`Total Cycles` of COMPUTE_REPORT.csv by scalesim 3.0.0, dataflow `os`, GEMM layers M, K, N as here.

    The package counts from 0 and lets a fold drain while the skew of its last operands passes: R cycles less a fold
    than the paper's formula, which drains when all is computed.
    """
    rows, depth, columns = sizes
    chip = replace(SMALL, rows=array[0], columns=array[1])
    product = Product(1, rows, depth, columns, rows * depth, depth * columns)
    assert compute_cycles(product, chip, 8, 8) - folds(product, chip) * chip.rows - 1 == told


# Products of operators


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_convolution_is_a_product_of_its_windows(groups: int) -> None:
    rng = torch.Generator().manual_seed(groups)
    x, weight = torch.rand(2, 4, 7, 6, generator=rng), torch.rand(8, 4 // groups, 3, 2, generator=rng)
    wanted = nn.functional.conv2d(x, weight, stride=2, padding=1, groups=groups)
    (product,) = products_of("conv2d", (x.shape, weight.shape), wanted.shape)
    windows = nn.functional.unfold(x, (3, 2), stride=2, padding=1)  # [2, 4 * 6, positions]
    left = (
        windows.unflatten(1, (groups, product.depth)).permute(1, 0, 3, 2).reshape(groups, product.rows, product.depth)
    )
    right = weight.reshape(groups, product.columns, product.depth).transpose(1, 2)
    result = (left @ right).unflatten(1, (2, -1)).permute(1, 0, 3, 2).reshape(wanted.shape)
    torch.testing.assert_close(result, wanted)
    assert product.groups == groups


def test_products_count_as_torch_counts(everything: Graph, work: Workload) -> None:
    # Torch counts attention where it is made of matrix products.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        everything.module(torch.rand(2, 3, 12, 12))
    pairs = 0
    for node in work.names.values():
        if (kind := op_name(node)) in OPERANDS:
            operands = [node.args[index] for index in OPERANDS[kind]]
            shapes = [work.values[operand].shape for operand in operands if isinstance(operand, fx.Node)]
            products = products_of(kind, shapes, tuple(work.values[node].shape))
            pairs += sum(p.groups * p.rows * p.depth * p.columns for p in products)
    assert 2 * pairs == counter.get_total_flops()


def test_depthwise_maps_badly() -> None:
    chip = Systolic().chip
    dense = Product(1, 196, 9 * 64, 64, 196 * 64, 9 * 64 * 64)
    depthwise = Product(64, 196, 9, 1, 196 * 64, 9 * 64)
    single = replace(depthwise, groups=1)
    assert compute_cycles(depthwise, chip, 8, 8) == 64 * compute_cycles(single, chip, 8, 8)
    # A 64th of the products takes more cycles.
    assert compute_cycles(depthwise, chip, 8, 8) > compute_cycles(dense, chip, 8, 8)


# Bytes and energy


def counted_reads(product: Product, chip: Chip, left_fit: int, right_fit: int, stay: str) -> tuple[int, int]:
    """Walk over the folds of one group with buffers of so many tiles and count the tiles that must be fetched."""
    down, across = math.ceil(product.rows / chip.rows), math.ceil(product.columns / chip.columns)
    fetched = {"left": 0, "right": 0}
    held: dict[str, set[int]] = {"left": set(), "right": set()}

    def fetch(side: str, tiles: set[int]) -> None:
        fetched[side] += len(tiles - held[side])
        held[side] = tiles

    if stay == "right":
        for start in range(0, across, right_fit):
            fetch("right", set(range(start, min(start + right_fit, across))))
            for i in range(down):
                held["left"] = set()
                fetch("left", {i})
    else:
        for start in range(0, down, left_fit):
            fetch("left", set(range(start, min(start + left_fit, down))))
            for i in range(across):
                held["right"] = set()
                fetch("right", {i})
    return fetched["left"] // down, fetched["right"] // across


@given(rows=st.integers(1, 60), depth=st.integers(1, 300), columns=st.integers(1, 60), bits=st.sampled_from(WIDTHS))
def test_reads_are_those_of_the_best_order(rows: int, depth: int, columns: int, bits: int) -> None:
    product = Product(1, rows, depth, columns, rows * depth, depth * columns)
    left_fit = SMALL.activation_buffer_bytes // 2 // bytes_of(min(4, rows) * depth, bits)
    right_fit = SMALL.weight_buffer_bytes // 2 // bytes_of(min(5, columns) * depth, bits)
    orders = [(math.ceil(columns / 5), math.ceil(rows / 4))]
    orders += [counted_reads(product, SMALL, left_fit, right_fit, "right")] if right_fit else []
    orders += [counted_reads(product, SMALL, left_fit, right_fit, "left")] if left_fit else []

    def moved(order: tuple[int, int]) -> int:
        return order[0] * bytes_of(product.left, bits) + order[1] * bytes_of(product.right, bits)

    assert moved(reads(product, SMALL, bits, bits)) == min(moved(order) for order in orders)


def test_energies_are_those_of_the_table() -> None:
    for kib, pj_per_64_bits in ((8, 10), (32, 20), (1024, 100)):
        assert sram_pj_per_byte(1024 * kib) == pytest.approx(pj_per_64_bits / 8)
    sizes = [sram_pj_per_byte(1024 * kib) for kib in (1, 8, 20, 32, 100, 1024, 4096)]
    assert sizes == sorted(sizes)
    # One product of 8 by 8 bits by hand: multiply, add, three bytes over buffer and memory, two into the array.
    found = cost(SMALL, ((Product(1, 1, 1, 1, 1, 1), Widths(8, 8, 8, 8)),), weight_bytes=1, other_bytes=1)
    buffer_pj = 10 / 8 * (1 / 8) ** 0.5
    assert found.energy_mj * 1e9 == pytest.approx(0.2 + 0.1 + 3 * (1950 / 8 + buffer_pj) + 2 * buffer_pj)
    assert (found.cycles, found.weight_bytes, found.traffic_bytes) == (2 * 4 + 5 + 1 - 2, 1, 3)


def test_the_slower_of_array_and_memory_decides() -> None:
    product, widths = Product(1, 4, 100, 5, 400, 500), Widths(8, 8, 8, 8)
    slow, fast = replace(SMALL, bandwidth_gb_s=0.001), replace(SMALL, bandwidth_gb_s=1e6)
    assert cost(fast, ((product, widths),), weight_bytes=0, other_bytes=20).cycles == 2 * 4 + 5 + 100 - 2
    found = cost(slow, ((product, widths),), weight_bytes=0, other_bytes=20)
    assert found.traffic_bytes == 920
    assert found.latency_ms == pytest.approx(920 / 1e6 * 1e3)  # 1 MB/s


_SIZES = st.tuples(st.integers(1, 9), st.integers(1, 300), st.integers(1, 900), st.integers(1, 200))
_WIDTHS = st.tuples(*[st.sampled_from(WIDTHS)] * 4).filter(lambda w: w[2] >= w[0] and w[3] >= w[1])


def product_of(sizes: tuple[int, int, int, int], overlap: int) -> Product:
    groups, rows, depth, columns = sizes
    return Product(*sizes, max(1, groups * rows * depth // overlap), groups * depth * columns)


@settings(max_examples=300)
@given(sizes=_SIZES, overlap=st.integers(1, 9), narrow=_WIDTHS, wide=_WIDTHS, others=st.integers(0, 9999))
def test_fewer_bits_never_cost_more(
    sizes: tuple[int, int, int, int],
    overlap: int,
    narrow: tuple[int, int, int, int],
    wide: tuple[int, int, int, int],
    others: int,
) -> None:
    lower = tuple(min(a, b) for a, b in zip(narrow, wide, strict=True))
    product = product_of(sizes, overlap)
    for chip in (SMALL, Systolic(activation_buffer_kib=2, weight_buffer_kib=64).chip):
        less = cost(chip, ((product, Widths(*lower)),), weight_bytes=0, other_bytes=others)
        assert not_more(less, cost(chip, ((product, Widths(*wide)),), weight_bytes=0, other_bytes=others))


@settings(max_examples=200)
@given(sizes=_SIZES, widths=_WIDTHS, batch=st.integers(1, 40), more=st.integers(1, 9), by_group=st.booleans())
def test_larger_batches_never_cost_less(
    sizes: tuple[int, int, int, int], widths: tuple[int, int, int, int], batch: int, more: int, by_group: bool
) -> None:
    """A batch adds rows to a convolution and groups to a product of activations."""

    def at(count: int) -> OperatorCost:
        groups, rows, depth, columns = sizes
        grown = (groups * count, rows, depth, columns) if by_group else (groups, rows * count, depth, columns)
        return cost(SMALL, ((product_of(grown, 1), Widths(*widths)),), weight_bytes=0, other_bytes=count)

    assert not_more(at(batch), at(batch + more))


# Graphs


_BITS = st.builds(Bits, st.sampled_from((2, 3, 4, 6, 8, 16)), st.sampled_from((2, 3, 4, 6, 8, 16)))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_fewer_bits_of_any_operator_never_cost_more(data: st.DataObject, work: Workload) -> None:
    target = Systolic(8, 8, 1, 1, bandwidth_gb_s=0.5)
    names = [name for name, node in work.names.items() if op_name(node) in OPERANDS or op_name(node) == "add"]
    wide = {name: data.draw(_BITS) for name in names if data.draw(st.booleans())}
    assume(wide)
    narrow = dict(wide)
    for name in data.draw(st.sets(st.sampled_from(sorted(names)), min_size=1)):
        asked, had = data.draw(_BITS), wide.get(name, Bits(16, 16))
        narrow[name] = Bits(min(asked.weights, had.weights), min(asked.activations, had.activations))
    less, more = target.costs(work, narrow), target.costs(work, wide)
    assert less.keys() == more.keys()
    for name, found in less.items():
        assert not_more(found, more[name]), name


def test_costs_grow_with_the_batch_and_the_weights_do_not(everything: Graph) -> None:
    target = Systolic(8, 8, 1, 1)
    before = target.operator_costs(everything, {}, 1)
    for batch in (2, 3, 8, 17):
        now = target.operator_costs(everything, {}, batch)
        assert all(not_more(before[name], found) for name, found in now.items())
        assert all(found.weight_bytes == before[name].weight_bytes for name, found in now.items())
        before = now


def test_what_costs_nothing_is_left_out_and_the_rest_is_named(everything: Graph) -> None:
    found = Systolic().operator_costs(everything, {}, 1)
    assert set(found) < set(operators(everything))
    kinds = {name.rsplit("/", 1)[1].split("#")[0] for name in found}
    assert set(kinds) == {
        *("conv2d", "conv_transpose2d", "linear", "matmul", "scaled_dot_product_attention"),
        *("add", "max_pool2d", "layer_norm", "softmax", "mean"),
    }
    sizes = {name: value.numel() for name, value in everything.module.state_dict().items()}
    norms = sum(size for name, size in sizes.items() if "norm" in name and "num_batches" not in name)
    biases = sum(size for name, size in sizes.items() if "norm" not in name and name.endswith("bias"))
    weights = sum(size for name, size in sizes.items() if "norm" not in name and name.endswith("weight"))
    assert norms == 4 * 8 + 2 * 8
    assert sum(cost.weight_bytes for cost in found.values()) == 2 * (weights + norms) + 4 * biases
    assert found["up/conv_transpose2d#0"].weight_bytes == 8 * 4 * 2 * 2 * 2 + 4 * 4


def test_results_are_stored_as_wide_as_the_widest_reader_wants(everything: Graph) -> None:
    target = Systolic()
    plain = target.operator_costs(everything, {}, 1)
    narrow = target.operator_costs(everything, {"grouped/conv2d#0": Bits(16, 4)}, 1)
    pixels = 8 * 6 * 6
    # relu6 is computed at the exit of the depthwise convolution, which writes 4 instead of 16 bits.
    saved = plain["depthwise/conv2d#0"].traffic_bytes - narrow["depthwise/conv2d#0"].traffic_bytes
    assert (
        saved == plain["grouped/conv2d#0"].traffic_bytes - narrow["grouped/conv2d#0"].traffic_bytes == pixels * 12 // 8
    )
    assert plain["stem/conv2d#0"] == narrow["stem/conv2d#0"]  # a residual addition reads it in 16 bits


def test_bytes_of_each_operator_by_hand() -> None:
    class Scores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            query, key = self.query(x), self.key(x)
            return (query @ key.transpose(1, 2)).softmax(-1) + query.narrow(2, 0, 6)

    graph = capture(Scores(), torch.rand(2, 6, 8))
    bits = {"/matmul#0": Bits(4, 8), "/add#0": Bits(16, 2), "key/linear#0": Bits(2, 8)}
    found = {name: cost.traffic_bytes for name, cost in Systolic().operator_costs(graph, bits, 2).items()}
    x, half, weights, scores = 2 * 6 * 8, 2 * 6 * 8 // 2, 8 * 8, 2 * 6 * 6
    assert found == {
        "query/linear#0": 2 * x + 2 * weights + x,  # the other linear operator wants 8 bits, this one 16
        "key/linear#0": 2 * x + weights // 4 + half,  # written in the 4 bits of the right operand
        "/matmul#0": x + half + 2 * scores,
        "/softmax#0": 2 * scores + scores // 4,
        "/add#0": scores // 4 + 2 * 6 * 6 + 2 * scores,  # what it narrows lies in 8 bits; a result in 16
    }


@pytest.fixture(scope="module")
def planned(everything: Graph) -> Graph:
    wanted = place(everything, Systolic().placement, Bits(4, 8))
    recipe = Nearest(bias_correction=False, equalization="none").plan(
        everything, [torch.rand(4, 3, 12, 12)], wanted, rng=generator(0, "plan")
    )
    return realise(everything, recipe)


def test_bits_are_read_from_rounds(everything: Graph, planned: Graph) -> None:
    found = bits_of(planned)
    assert bits_of(everything) == {}
    assert found["stem/conv2d#0"] == found["head/linear#0"] == Bits(8, 8)  # both ends
    assert found["depthwise/conv2d#0"] == found["grouped/conv2d#0"] == found["qkv/linear#0"] == Bits(4, 8)
    assert found["/add#0"] == Bits(16, 8)
    assert found["/matmul#0"] == found["/matmul#1"] == Bits(8, 8)
    assert not any("max_pool2d" in name or "softmax" in name for name in found)
    by_hand = bits_of(quantized(float_graph(), PICTURES, weights=2, activations=4, float_weights=("first",)))
    assert by_hand["second/conv2d#0"] == by_hand["head/linear#0"] == Bits(2, 4)
    assert by_hand["first/conv2d#0"] == Bits(16, 4)


def test_a_realised_graph_costs_what_the_float_graph_does_in_its_bits(everything: Graph, planned: Graph) -> None:
    target = Systolic(8, 8, 4, 4)
    found = target.operator_costs(planned, bits_of(planned), 3)
    assert found == target.operator_costs(everything, bits_of(planned), 3)
    wide = target.operator_costs(planned, {}, 3)
    assert sum(cost.cycles for cost in found.values()) < sum(cost.cycles for cost in wide.values())


# The target


def test_the_file_answers_as_the_graph_and_says_that_it_is_simulated(planned: Graph, tmp_path: Path) -> None:
    target = Systolic()
    artefact = target.compile(planned, tmp_path / "net", bits="w4a8")
    assert artefact.settings["simulated"].startswith("systolic 32x32")
    with torch.no_grad():
        wanted = target.simulated(planned).module(PICTURES)
    torch.testing.assert_close(target.open(artefact, threads=1)(PICTURES), wanted, rtol=1e-5, atol=1e-6)


def test_latency_is_the_sum_over_operators(planned: Graph, everything: Graph, tmp_path: Path) -> None:
    target = Systolic(16, 8, bandwidth_gb_s=1.5)
    graphs = {"w4a8": planned, "float32": everything}
    artefacts = [target.compile(graph, tmp_path / bits, bits=bits) for bits, graph in graphs.items()]
    timings = target.time(artefacts, threads=1, batches=(8, 1))
    for timing, graph in zip(timings, graphs.values(), strict=True):
        for latency, batch in zip(timing.latency, (8, 1), strict=True):
            costs = target.operator_costs(graph, bits_of(graph), batch).values()
            total_ms = sum(found.cycles for found in costs) / (1000 * target.clock_mhz)
            assert latency.median == latency.p10 == latency.p90 == pytest.approx(total_ms, rel=1e-12)
            assert (latency.runs, latency.batch, latency.threads) == (0, batch, 1)
        assert timing.throughput_per_s == pytest.approx(8000 / timing.latency[0].median)
        assert timing.peak_memory_bytes == 2 * 256 * 1024
        weight_bytes = sum(found.weight_bytes for found in target.operator_costs(graph, bits_of(graph), 1).values())
        assert timing.load_ms == pytest.approx(weight_bytes / 1.5e6)
    assert timings[0].latency[0].median < timings[1].latency[0].median
    assert astuple(timings[1]) == astuple(target.time(artefacts[1:], threads=1, batches=(8, 1))[0])


def test_sentences_have_128_tokens() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(1000, 16), nn.Linear(16, 8)

        def forward(self, input_ids: Tensor) -> Tensor:
            return self.head(self.embedding(input_ids)).mean(1)

    graph = capture(Tokens(), {"input_ids": torch.ones(2, 6, dtype=torch.int64)})
    found = Systolic().operator_costs(graph, {"head/linear#0": Bits(8, 8)}, 2)
    # Only the rows that are looked up move: read in 16 bits, 8 bytes an id, written in the 8 bits that are read.
    rows = 2 * 128 * 16
    assert found["embedding/embedding#0"].traffic_bytes == 2 * rows + 8 * 2 * 128 + rows
    assert found["embedding/embedding#0"].weight_bytes == 2 * 1000 * 16
    assert found["head/linear#0"].traffic_bytes == rows + 16 * 8 + 4 * 8 + 2 * 2 * 128 * 8


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Systolic(rows=0), "rows 0"),
        (lambda: Systolic(columns=-3), "columns -3"),
        (lambda: Systolic(columns=2.5), "columns 2.5"),  # pyright: ignore[reportArgumentType]
        (lambda: Systolic(weight_buffer_kib=0), "weight_buffer_kib 0"),
        (lambda: Systolic(activation_buffer_kib=-1), "activation_buffer_kib -1"),
        (lambda: Systolic(bandwidth_gb_s=0), "bandwidth_gb_s 0"),
        (lambda: Systolic(clock_mhz=math.nan), "clock_mhz nan"),
        (lambda: Systolic(bit_widths=(3, 16)), "bit_widths"),
        (lambda: Systolic(bit_widths=(2, 4, 8)), "always 16"),
        (lambda: Systolic(bit_widths=()), "bit_widths"),
    ],
)
def test_options_of_no_chip(make: Callable[[], Systolic], named: str) -> None:
    with pytest.raises(BadInput, match=named):
        make()


def test_widths_that_the_units_lack_take_the_next_larger(everything: Graph) -> None:
    coarse = Systolic(bit_widths=(16, 8))
    asked, taken = {"qkv/linear#0": Bits(2, 5)}, {"qkv/linear#0": Bits(8, 8)}
    assert coarse.operator_costs(everything, asked, 1) == Systolic().operator_costs(everything, taken, 1)
    with pytest.raises(BadInput, match="17 bits"):
        coarse.operator_costs(everything, {"qkv/linear#0": Bits(17, 8)}, 1)


def test_what_the_model_cannot_do(everything: Graph, tmp_path: Path) -> None:
    class Einsum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.einsum("bchw,bdhw->bcd", x, x)

    graph = capture(Einsum(), torch.rand(2, 3, 4, 4))
    with pytest.raises(NotApplicable, match="einsum"):
        Systolic().compile(graph, tmp_path / "einsum", bits="float32")
    with pytest.raises(NotApplicable, match="einsum"):
        Systolic().operator_costs(graph, {}, 1)
    with pytest.raises(NotApplicable, match="bf16"):
        Systolic().compile(everything, tmp_path / "narrow", bits="bf16")
    with pytest.raises(BadInput, match="did you mean 'qkv/linear#0'"):
        Systolic().operator_costs(everything, {"qkv/linear#1": Bits(8, 8)}, 1)
    with pytest.raises(BadInput, match="batch 0"):
        Systolic().operator_costs(everything, {}, 0)
    foreign = Artefact(tmp_path / "x.onnx", "onnx", "float32", {})
    with pytest.raises(BadInput, match="onnx"):
        Systolic().time([foreign], threads=1)
    with pytest.raises(BadInput, match="onnx"):
        Systolic().open(foreign, threads=1)
