"""Where rounds stand: exact sites of small networks for both rule sets, and laws over all of them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from seatrial.core.graph import Graph, capture
from seatrial.core.placement import PlacementRules
from seatrial.core.precision import Bits, Precision
from seatrial.core.realise import realise
from seatrial.core.recipe import Affine, Recipe, Round
from seatrial.core.sites import Site, op_name, operators, signature
from seatrial.errors import BadInput
from seatrial.numerics.batch_norm import fold_batch_norm
from seatrial.quant.placement import place

INPUTS_ONLY = PlacementRules(
    "openvino",
    "by-range",
    operator_outputs=False,
    attention_products="all",
    linear_sign="unsigned",
    products_around_zero=True,
)
OUTPUTS_TOO = PlacementRules("onnxruntime", "unsigned", operator_outputs=True)
W8A8, W4A4 = Bits(8, 8), Bits(4, 4)


def conv(inputs: int, outputs: int, size: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2)


class Residual(nn.Module):
    """Convolution, ReLU, convolution, add, ReLU, max pool, mean, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = conv(3, 8), conv(8, 8), conv(8, 8)
        self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        low = self.stem(x / 2).relu()
        high = self.norm(self.two(self.one(low).relu()))
        pooled = torch.max_pool2d((high + low).relu(), 2)
        return self.head(pooled.mean((2, 3)))


class Excite(nn.Module):
    """A squeeze-and-excite block behind a hard swish."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down, self.up, self.out = conv(3, 8), conv(8, 4, 1), conv(4, 8, 1), conv(8, 4, 1)
        self.swish, self.gate = nn.Hardswish(), nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        x = self.swish(self.stem(x / 2))
        gate = self.gate(self.up(self.down(x.mean((2, 3), keepdim=True)).relu()))
        return self.out(x * gate)


class Fire(nn.Module):
    """Two fire modules with a max pool between, as in SqueezeNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 4)
        self.squeeze, self.left, self.right = conv(4, 2, 1), conv(2, 4, 1), conv(2, 4)
        self.squeeze2, self.left2, self.right2 = conv(8, 2, 1), conv(2, 4, 1), conv(2, 4)
        self.head = conv(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(self.stem(x / 2).relu()).relu()
        x = torch.max_pool2d(torch.cat([self.left(x).relu(), self.right(x).relu()], 1), 2)
        x = self.squeeze2(x).relu()
        x = torch.cat([self.left2(x).relu(), self.right2(x).relu()], 1)
        return self.head(x).mean((2, 3))


class Attention(nn.Module):
    """One pre-norm transformer block, heads split as timm does it, then a class token and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.norm, self.norm2 = nn.Conv2d(3, 8, 4, stride=4), nn.LayerNorm(8), nn.LayerNorm(8)
        self.qkv, self.proj, self.up, self.down = nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.act, self.last, self.head = nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x / 2).flatten(2).transpose(1, 2)
        read = self.qkv(self.norm(x)).reshape(x.shape[0], 9, 3, 2, 4).permute(2, 0, 3, 1, 4)
        query, key, value = read.unbind(0)
        weights = ((query * 0.5) @ key.transpose(-2, -1)).softmax(-1)
        x = x + self.proj((weights @ value).transpose(1, 2).reshape(x.shape[0], 9, 8))
        x = x + self.down(self.act(self.up(self.norm2(x))))
        return self.head(self.last(x)[:, 0])


class Windows(nn.Module):
    """Four-dimensional tokens with a position bias on the attention, as Swin has them."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.norm, self.qkv = nn.Conv2d(3, 8, 4, stride=4), nn.LayerNorm(8), nn.Linear(8, 24)
        self.proj, self.head = nn.Linear(8, 8), nn.Linear(8, 5)
        self.bias = nn.Parameter(torch.rand(9, 9, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x / 2).permute(0, 2, 3, 1)
        query, key, value = self.qkv(self.norm(x)).reshape(-1, 9, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (query @ key.transpose(-2, -1) + self.bias.permute(2, 0, 1).unsqueeze(0)).softmax(-1)
        x = x.sin() + self.proj((weights @ value).transpose(1, 2).reshape(-1, 3, 3, 8))
        return self.head(x.mean((1, 2)))


class PostNorm(nn.Module):
    """A layer norm whose output is read by a linear operator and by the residual add."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(3, 8), nn.LayerNorm(8)
        self.up, self.down, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first((x / 2).flatten(2).transpose(1, 2)))
        x = x + self.down(self.up(x).relu())
        return self.head(x)


class Overlapping(nn.Module):
    """One tensor in two concatenations, and one concatenation that a float operator reads too."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = conv(3, 4), conv(3, 4), conv(3, 4)
        self.left, self.right, self.mixed = conv(8, 4), conv(8, 4), conv(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x / 2
        a, b, c = self.one(x).relu(), self.two(x).relu(), self.three(x).relu()
        read = self.left(torch.cat([a, b], 1)) - self.right(torch.cat([b, c], 1))
        both = torch.cat([read.sin(), read.cos()], 1)
        return self.mixed(both) + both.mean((1, 2, 3), keepdim=True).exp()


NETWORKS: dict[str, type[nn.Module]] = {
    kind.__name__: kind for kind in (Residual, Excite, Fire, Attention, Windows, PostNorm, Overlapping)
}


@cache
def graph_of(name: str) -> Graph:
    torch.manual_seed(0)
    return fold_batch_norm(capture(NETWORKS[name](), torch.rand(2, 3, 12, 12)))


def activation_sites(sites: Iterable[Site]) -> set[str]:
    return {str(site) for site in sites if site.port != "weight"}


def ports(sites: Iterable[Site]) -> set[str]:
    return {str(site) for site in sites}


def test_residual_rounds_both_inputs_of_the_add_the_pools_and_the_mean():
    placed = place(graph_of("Residual"), INPUTS_ONLY, W8A8)
    assert activation_sites(placed) == {
        "/div#0:output",
        "/relu#0:output",  # read by the convolution and the add
        "/relu#1:output",
        "two/conv2d#0:output",  # batch norm folded: the other side of the add
        "/relu#2:output",  # before the max pool, for the mean
        "/mean#0:output",
    }
    assert {str(site) for site in placed if site.port == "weight"} == {
        f"{path}/conv2d#0:weight" for path in ("stem", "one", "two")
    } | {"head/linear#0:weight"}


def test_residual_with_operator_outputs_adds_only_the_sum():
    placed = place(graph_of("Residual"), OUTPUTS_TOO, W8A8)
    inputs_only = place(graph_of("Residual"), INPUTS_ONLY, W8A8)
    # ReLUs are absorbed, so their outputs count as those of the convolutions and of the add; the result stays float.
    assert activation_sites(placed) == activation_sites(inputs_only)
    assert all(placed[site].signed is False for site in placed if site.port != "weight")


def test_excite_rounds_the_whole_branch():
    inputs_only = {
        "/div#0:output",
        "swish/hardswish#0:output",  # read by the mean and the product
        "/mean#0:output",
        "/relu#0:output",
        "gate/hardsigmoid#0:output",
        "/mul#0:output",
    }
    assert activation_sites(place(graph_of("Excite"), INPUTS_ONLY, W8A8)) == inputs_only
    # No kernel computes these activations inside a convolution there: the convolution gets a round of its own.
    outputs = {"stem/conv2d#0:output", "up/conv2d#0:output"}
    assert activation_sites(place(graph_of("Excite"), OUTPUTS_TOO, W8A8)) == inputs_only | outputs


def test_fire_ties_the_inputs_of_each_concatenation():
    for rules in (INPUTS_ONLY, OUTPUTS_TOO):
        placed = place(graph_of("Fire"), rules, W8A8)
        expected = {"/div#0:output", *(f"/relu#{i}:output" for i in range(7))}
        # ONNX Runtime concatenates integers only between rounds; the second has the grid of the first.
        cats = [["/cat#0:output"], ["/cat#1:output"]] if rules.operator_outputs else [[], []]
        expected |= {*cats[0], *cats[1]}
        # The head's output is averaged: a pool that reads what an integer operator wrote.
        assert activation_sites(placed) == expected | {"head/conv2d#0:output"}
        ties: dict[str | None, set[str]] = {}
        for site, wanted in placed.items():
            ties.setdefault(wanted.tie, set()).add(str(site))
        del ties[None]
        assert sorted(map(sorted, ties.values())) == [
            [*cats[0], "/relu#2:output", "/relu#3:output"],
            [*cats[1], "/relu#5:output", "/relu#6:output"],
        ]


def test_attention_rounds_products_around_zero_and_stands_before_transposes():
    placed = place(graph_of("Attention"), INPUTS_ONLY, W8A8)
    around_zero = {"/mul#0:output", "/getitem#1:output", "/getitem#2:output", "/softmax#0:output"}
    unsigned = {
        "norm/layer_norm#0:output",
        "/matmul#1:output",  # before transpose and reshape
        "norm2/layer_norm#0:output",
        "act/gelu#0:output",
    }
    ends = {"/div#0:output", "/select#0:output"}
    assert activation_sites(placed) == around_zero | unsigned | ends
    told = {str(site): wanted for site, wanted in placed.items()}
    assert all(told[name] == Precision(8, signed=None, symmetric=True) for name in around_zero)
    assert all(told[name] == Precision(8, signed=False) for name in unsigned)


@pytest.mark.parametrize(
    ("products", "expected"),
    [("none", set()), ("query-key", {"/mul#0:output", "/getitem#1:output"})],
)
def test_attention_products_are_a_rule(products: Literal["none", "query-key"], expected: set[str]):
    rules = PlacementRules("a", "by-range", operator_outputs=False, attention_products=products)
    inner = {"/mul#0:output", "/getitem#1:output", "/getitem#2:output", "/softmax#0:output"}
    assert activation_sites(place(graph_of("Attention"), rules, W8A8)) & inner == expected


def test_residual_stream_and_attention_bias_of_windows_stay_float():
    products = {"/getitem#0:output", "/getitem#1:output", "/getitem#2:output", "/softmax#0:output"}
    linear = {"norm/layer_norm#0:output", "/matmul#1:output", "/mean#0:output", "/div#0:output"}
    assert activation_sites(place(graph_of("Windows"), INPUTS_ONLY, W8A8)) == products | linear
    # The patch embedding is read by a sine and would run in float there: it is left in float.
    assert activation_sites(place(graph_of("Windows"), OUTPUTS_TOO, W8A8)) == linear - {"/div#0:output"}


@pytest.mark.parametrize("rules", [INPUTS_ONLY, OUTPUTS_TOO], ids=lambda rules: rules.name)
def test_a_tensor_that_a_float_operator_reads_too_is_rounded_on_the_edge(rules: PlacementRules):
    placed = activation_sites(place(graph_of("PostNorm"), rules, W8A8))
    # The layer norm's output also goes into the residual sum.
    assert placed == {"/div#0:output", "up/linear#0:input0", "/relu#0:output", "/add#0:output"}


class Rolled(nn.Module):
    """A window that was rolled and cut into tokens, as Swin's shifted windows are; then an upsampled picture."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv = nn.LayerNorm(3), nn.Linear(3, 4)
        self.one, self.two, self.head = conv(3, 4), conv(4, 4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.roll(self.norm(x.permute(0, 2, 3, 1)), (1, 1), (1, 2)).flatten(1, 2)
        picture = nn.functional.interpolate(self.one(x / 2).relu(), scale_factor=2.0)
        return self.head((self.two(picture).relu().mean((2, 3))) + self.qkv(tokens).mean(1))


def test_a_roll_is_rounded_at_its_reader_and_an_upsampling_on_both_sides():
    graph = capture(Rolled(), torch.rand(2, 3, 12, 12))
    told = {str(site): wanted.tie for site, wanted in place(graph, OUTPUTS_TOO, W8A8).items() if site.port != "weight"}
    upsampled = "/upsample_nearest2d#0:output"
    assert told[upsampled] == told["/relu#0:output"] is not None
    assert "/flatten#0:output" in told
    assert "/roll#0:output" not in told
    fewer = activation_sites(place(graph, INPUTS_ONLY, W8A8))
    assert upsampled not in fewer
    assert {"/flatten#0:output", "/relu#0:output"} <= fewer


class Padded(nn.Module):
    """A padding that a convolution reads, one of tokens, and one of nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.norm = conv(3, 3), nn.Conv2d(3, 8, 3), nn.LayerNorm(8)
        self.mix, self.head = nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(nn.functional.pad(self.stem(x / 2).relu(), (1, 1, 1, 1)))
        tokens = nn.functional.pad(self.norm(x.flatten(2).transpose(1, 2)), (0, 0, 0, 1))
        return self.head(nn.functional.pad(self.norm(self.mix(tokens)), (0, 0, 0, 0)))


def test_a_padding_of_tokens_is_rounded_on_both_sides_where_outputs_are():
    graph = capture(Padded(), torch.rand(2, 3, 12, 12))
    told = {str(site): wanted.tie for site, wanted in place(graph, OUTPUTS_TOO, W8A8).items()}
    # A convolution takes its padding up, and one of nothing disappears in the file.
    assert [name for name in told if "pad" in name] == ["/pad#1:output"]
    assert told["/pad#1:output"] == told["norm/layer_norm#0:output"] is not None
    assert not any("pad" in site for site in activation_sites(place(graph, INPUTS_ONLY, W8A8)))


def test_overlapping_concatenations_share_one_grid_and_a_float_reader_keeps_its_values():
    placed = place(graph_of("Overlapping"), INPUTS_ONLY, W8A8)
    told = {str(site): wanted.tie for site, wanted in placed.items() if site.port != "weight"}
    assert told["/relu#0:output"] == told["/relu#1:output"] == told["/relu#2:output"]
    assert told["/relu#0:output"] is not None
    assert "mixed/conv2d#0:input0" in told
    assert not any("sin" in name or "cos" in name for name in told)


@pytest.mark.parametrize("rules", [INPUTS_ONLY, OUTPUTS_TOO], ids=lambda rules: rules.name)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_input_of_a_weighted_operator_is_rounded(name: str, rules: PlacementRules):
    """Law, seen on the realised graph: upstream of each input, behind what only moves values, stand rounds.

    Where kernels need a round behind them too, a convolution whose output has none is float with its weight.
    """
    graph = graph_of(name)
    rounded = realise(graph, _recipe(graph, place(graph, rules, W8A8)))
    for node in operators(rounded).values():
        if op_name(node) in ("conv2d", "linear"):
            weight, source = node.args[1], node.args[0]
            assert isinstance(weight, fx.Node)
            assert isinstance(source, fx.Node)
            integer = op_name(node) == "linear" or not rules.operator_outputs or _output_rounded(node)
            assert (op_name(weight) == "qdq") is integer
            assert not integer or _all_rounded(source), f"{node} reads {source} as float"


def _output_rounded(node: fx.Node) -> bool:
    users = list(node.users)
    while len(users) == 1 and op_name(users[0]) == "relu":
        users = list(users[0].users)
    return bool(users) and all(op_name(user) == "qdq" for user in users)


def _all_rounded(node: fx.Node) -> bool:
    if op_name(node) == "qdq":
        return True
    moving = ("cat", "max_pool2d", "flatten", "transpose", "reshape", "view", "slice", "permute")
    read = [n for n in node.all_input_nodes if op_name(n) != "sym_size"]
    return op_name(node) in moving and all(_all_rounded(value) for value in read)


def _recipe(graph: Graph, placed: dict[Site, Precision]) -> Recipe:
    rounds = []
    for site, wanted in placed.items():
        signed = bool(wanted.signed)
        scale, zero = torch.tensor(0.1), torch.tensor(0)
        rounds.append(Round(site, Affine(wanted.bits, signed, scale, zero, None, wanted.narrow)))
    return Recipe(tuple(rounds), signature(graph))


@pytest.mark.parametrize("rules", [INPUTS_ONLY, OUTPUTS_TOO], ids=lambda rules: rules.name)
@pytest.mark.parametrize("name", NETWORKS)
def test_no_tensor_is_rounded_twice_and_the_result_stays_float(name: str, rules: PlacementRules):
    graph = graph_of(name)
    rounded = realise(graph, _recipe(graph, place(graph, rules, W8A8)))
    for node in rounded.nodes():
        if op_name(node) == "qdq":
            assert op_name(node.args[0]) != "qdq"  # pyright: ignore[reportArgumentType]
        if node.op == "output":
            assert op_name(node.args[0]) != "qdq"  # pyright: ignore[reportArgumentType]


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(sorted(NETWORKS)),
    st.sampled_from([INPUTS_ONLY, OUTPUTS_TOO]),
    st.sampled_from((2, 3, 4, 5, 6, 7, 8, 16)),
    st.sampled_from((2, 3, 4, 5, 6, 7, 8, 16)),
)
def test_bits_are_those_asked_for_but_at_the_ends(name: str, rules: PlacementRules, weights: int, activations: int):
    graph = graph_of(name)
    placed = place(graph, rules, Bits(weights, activations))
    assert set(placed) == set(place(graph, rules, W8A8)), "where a round stands does not depend on its bits"
    weighted = [site for site in placed if site.port == "weight"]
    ends = [name for name, node in operators(graph).items() if op_name(node) in ("conv2d", "linear")]
    for site in weighted:
        end = site.operator in (ends[0], ends[-1])
        assert placed[site].bits == (max(8, weights) if end else weights)
        assert placed[site].symmetric
        assert placed[site].axis == 0
    assert {placed[site].bits for site in placed if site.port != "weight"} <= {activations, max(8, activations)}


def test_first_and_last_layers_keep_8_bits():
    placed = {str(site): wanted.bits for site, wanted in place(graph_of("Residual"), INPUTS_ONLY, W4A4).items()}
    assert placed == {
        "stem/conv2d#0:weight": 8,
        "/div#0:output": 8,
        "one/conv2d#0:weight": 4,
        "/relu#0:output": 4,
        "two/conv2d#0:weight": 4,
        "/relu#1:output": 4,
        "two/conv2d#0:output": 4,
        "/relu#2:output": 4,
        "head/linear#0:weight": 8,
        "/mean#0:output": 8,
    }


def test_tied_sites_get_equal_precision():
    for name in ("Fire", "Overlapping"):
        for rules in (INPUTS_ONLY, OUTPUTS_TOO):
            by_tie: dict[str, set[Precision]] = {}
            for wanted in place(graph_of(name), rules, W4A4, keep=["right*=8"]).values():
                if wanted.tie is not None:
                    by_tie.setdefault(wanted.tie, set()).add(wanted)
            assert by_tie
            assert all(len(group) == 1 for group in by_tie.values())


def test_saturating_kernels_get_7_bit_weights_and_only_instead_of_8():
    capped = PlacementRules("old", "unsigned", operator_outputs=False, weight_bits_cap=7)
    for asked, first, inner in ((W8A8, 7, 7), (W4A4, 7, 4), (Bits(16, 16), 16, 16)):
        placed = {str(site): wanted.bits for site, wanted in place(graph_of("Residual"), capped, asked).items()}
        assert placed["stem/conv2d#0:weight"] == first
        assert placed["one/conv2d#0:weight"] == inner
        assert placed["/relu#0:output"] == asked.activations


def test_kept_operators_stay_float_with_their_inputs():
    everything = place(graph_of("Attention"), INPUTS_ONLY, W8A8)
    placed = place(graph_of("Attention"), INPUTS_ONLY, W8A8, keep=["up", "/matmul#0=float32"])
    # The layer norm before `up` has no other reader; the first product's inputs are read by it alone.
    assert ports(everything) - ports(placed) == {
        "up/linear#0:weight",
        "norm2/layer_norm#0:output",
        "/mul#0:output",
        "/getitem#1:output",
    }
    assert ports(placed) <= ports(everything)


def test_a_kept_reader_leaves_the_round_on_the_other_readers_edge():
    placed = place(graph_of("Residual"), INPUTS_ONLY, W8A8, keep=["one"])
    assert "/relu#0:output" not in activation_sites(placed)
    assert "/add#0:input1" in activation_sites(placed)
    assert not any(site.path == "one" for site in placed)


def test_kept_precisions():
    graph = graph_of("Residual")
    for text in ("one=w8a8", "one=8"):
        told = {str(site): wanted.bits for site, wanted in place(graph, INPUTS_ONLY, W4A4, keep=[text]).items()}
        assert told["one/conv2d#0:weight"] == 8
        assert told["/relu#0:output"] == 8  # the most that a reader asks for
        assert told["/relu#1:output"] == told["two/conv2d#0:weight"] == 4
    narrow = place(graph, INPUTS_ONLY, W8A8, keep=["two=bf16"])
    floats = {str(site): wanted.float_type for site, wanted in narrow.items() if wanted.float_type}
    assert floats == {
        "two/conv2d#0:weight": "bf16",
        "two/conv2d#0:input0": "bf16",
        "two/conv2d#0:output": "bf16",
    }
    late = place(graph, INPUTS_ONLY, W4A4, keep=["*=8", "one*=w2a8"])
    assert {str(site): wanted.bits for site, wanted in late.items()}["one/conv2d#0:weight"] == 2
    ported = place(graph, INPUTS_ONLY, W8A8, keep=["*:output"])
    assert all(site.port != "output" for site in ported)
    assert {site for site in ported if site.port == "weight"} == {
        site for site in place(graph, INPUTS_ONLY, W8A8) if site.port == "weight"
    }


def test_keeping_everything_leaves_nothing():
    assert place(graph_of("Fire"), INPUTS_ONLY, W8A8, keep=["*"]) == {}


@pytest.mark.parametrize("text", ["no.such.layer", "nothing*=w8a8", "stem=w1a1", "stem=half", "", "=w8a8"])
def test_a_bad_keep_is_refused(text: str):
    with pytest.raises(BadInput) as told:
        place(graph_of("Residual"), INPUTS_ONLY, W8A8, keep=[text])
    assert "\n" not in str(told.value)


def test_a_network_without_weighted_operators_asks_for_nothing():
    class Plain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.relu().mean((2, 3))

    assert place(capture(Plain(), torch.rand(2, 3, 8, 8)), OUTPUTS_TOO, W8A8) == {}


def test_depthwise_kernels_keep_8_bits():
    capped = PlacementRules("old", "unsigned", operator_outputs=False, weight_bits_cap=7)
    graph = fold_batch_norm(
        capture(nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 12, 3, groups=6)), torch.rand(2, 3, 9, 9))
    )
    placed = {str(site): wanted.bits for site, wanted in place(graph, capped, W8A8).items()}
    assert (placed["0/conv2d#0:weight"], placed["1/conv2d#0:weight"]) == (7, 8)
