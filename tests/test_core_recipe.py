"""Sites, recipes and what carries them out."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from seatrial.core.graph import Graph, capture
from seatrial.core.realise import realise, source, tensor_inputs
from seatrial.core.recipe import Affine, FloatType, Migrate, Recipe, Replace, Round
from seatrial.core.sites import Site, op_name, operators, signature, site_of
from seatrial.errors import BadInput

ports = st.sampled_from(["output", "weight", "bias"]) | st.integers(0, 99).map(lambda i: f"input{i}")
paths = st.text(max_size=20)
names = st.text(min_size=1, max_size=10).filter(lambda text: not set(text) & set("/#:"))


@given(paths, names, st.integers(0, 10**6), ports)
def test_a_site_reads_what_it_prints(path: str, op: str, index: int, port: str) -> None:
    site = Site(path, op, index, port)
    assert Site.parse(str(site)) == site
    assert str(site).startswith(site.operator)


@given(st.text(alphabet="ab./#:0123weightoutpin-_ ", max_size=25))
def test_what_is_read_prints_as_it_was_written(text: str) -> None:
    try:
        site = Site.parse(text)
    except BadInput:
        return
    assert str(site) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "conv",
        "a/conv:output",
        "a/conv#0",
        "a/conv#-1:output",
        "a/conv#01:output",
        "a/conv#1:side",
        "a/#0:output",
        "a/conv#\N{FULLWIDTH DIGIT ONE}:output",
        "a/conv#1:input",
        "a/conv#1:input-1",
        "a/conv#1:output ",
    ],
)
def test_other_texts_are_no_sites(text: str) -> None:
    with pytest.raises(BadInput, match="PATH/OP#N:PORT"):
        Site.parse(text)


class Net(nn.Module):
    """A convolution without bias, a concatenation, a product of a tensor with itself and a linear head."""

    def __init__(self, out: int = 5) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, bias=False), nn.Linear(8, out)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.head(torch.cat([y.relu(), y * y], 1).mean((2, 3)))


@pytest.fixture(scope="module")
def graph() -> Graph:
    torch.manual_seed(0)
    return capture(Net(), torch.rand(2, 3, 6, 6))


X = torch.rand(3, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def grid(scale: float = 0.05, zero: int = 7) -> Affine:
    return Affine(4, False, torch.tensor(scale), torch.tensor(zero))


def per_channel(count: int, axis: int = 0) -> Affine:
    return Affine(8, True, torch.linspace(0.01, 0.1, count), torch.zeros(count, dtype=torch.int64), axis, narrow=True)


def put(value: Tensor, on: Affine) -> Tensor:
    """Round by the formula."""
    low, high = on.codes
    shape = [1] * value.ndim
    if on.axis is not None:
        shape[on.axis] = -1
    scale, zero = (t.reshape(shape) if on.axis is not None else t for t in (on.scale, on.zero_point))
    return ((value / scale).round().add(zero).clamp(low, high) - zero) * scale


def weights(graph: Graph) -> tuple[Tensor, Tensor, Tensor]:
    state = graph.module.state_dict()
    return state["inner.conv.weight"], state["inner.head.weight"], state["inner.head.bias"]


def reference(
    graph: Graph, change: Callable[[str, Tensor], Tensor], x: Tensor = X, *, bias: Tensor | None = None
) -> Tensor:
    """Run the network by hand; `change(place, value)` may round."""
    conv, head, offset = weights(graph)
    y = change("conv", F.conv2d(change("image", x), change("conv weight", conv), bias))
    square = change("left", y) * y
    joined = torch.cat([change("first", y.relu()), change("second", square)], 1)
    return F.linear(change("mean", joined.mean((2, 3))), change("head weight", head), offset)


G = grid()
PLACES: dict[str, tuple[str, str, Affine]] = {
    "output": ("conv/conv2d#0:output", "conv", G),
    "output of the graph's input": ("image/placeholder#0:output", "image", grid(0.1, 0)),
    "input": ("conv/conv2d#0:input0", "image", grid(0.1, 0)),
    "weight per channel": ("conv/conv2d#0:weight", "conv weight", per_channel(4)),
    "weight along axis 1": ("head/linear#0:weight", "head weight", per_channel(8, 1)),
    "weight by its number": ("head/linear#0:input1", "head weight", G),
    "first of a concatenation": ("/cat#0:input0", "first", G),
    "second of a concatenation": ("/cat#0:input1", "second", G),
    "activation per channel": ("/mean#0:output", "mean", per_channel(8, 1)),
}


@pytest.mark.parametrize("name", list(PLACES))
def test_a_round_stands_where_the_site_says(graph: Graph, name: str) -> None:
    text, place, on = PLACES[name]
    code, state = graph.module.code, {key: value.clone() for key, value in graph.module.state_dict().items()}
    new = realise(graph, Recipe((Round(Site.parse(text), on),), signature(graph)))
    wanted = reference(graph, lambda here, value: put(value, on) if here == place else value)
    torch.testing.assert_close(new.module(X), wanted, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(new.module(X), graph.module(X), rtol=1e-5, atol=1e-6)
    assert [op_name(node) for node in new.nodes()].count("qdq") == 1
    assert graph.module.code == code
    assert all(torch.equal(value, state[key]) for key, value in graph.module.state_dict().items())
    operators_left = [line for line in operators(new) if "qdq" not in line]
    assert operators_left == list(operators(graph))


def test_both_readings_of_one_tensor_are_rounded(graph: Graph) -> None:
    new = realise(graph, Recipe((Round(Site.parse("/mul#0:input0"), G),), signature(graph)))
    conv, head, offset = weights(graph)
    y = F.conv2d(X, conv)
    joined = torch.cat([y.relu(), put(y, G) ** 2], 1)
    torch.testing.assert_close(new.module(X), F.linear(joined.mean((2, 3)), head, offset), rtol=1e-5, atol=1e-6)


def test_a_float_type_rounds_by_casting(graph: Graph) -> None:
    edit = Round(Site.parse("conv/conv2d#0:output"), FloatType("bf16"))
    new = realise(graph, Recipe((edit,), signature(graph)))
    wanted = reference(graph, lambda here, value: value.bfloat16().float() if here == "conv" else value)
    torch.testing.assert_close(new.module(X), wanted, rtol=1e-5, atol=1e-6)


def test_replace_adds_a_missing_bias(graph: Graph) -> None:
    value = torch.tensor([1.0, -1.0, 0.5, 0.0])
    new = realise(graph, Recipe((Replace(Site.parse("conv/conv2d#0:bias"), value),), signature(graph)))
    torch.testing.assert_close(new.module(X), reference(graph, lambda _, kept: kept, bias=value))
    assert source(operators(new)["conv/conv2d#0"], "bias").op == "get_attr"


def test_replace_then_round_rounds_the_new_weight(graph: Graph) -> None:
    site, value = Site.parse("conv/conv2d#0:weight"), torch.randn(4, 3, 3, 3)
    new = realise(graph, Recipe((Replace(site, value), Round(site, per_channel(4))), signature(graph)))
    wanted = reference(graph, lambda here, kept: put(value, per_channel(4)) if here == "conv weight" else kept)
    torch.testing.assert_close(new.module(X), wanted, rtol=1e-5, atol=1e-6)


def test_realising_twice_does_not_mix_the_constants(graph: Graph) -> None:
    first, second = Site.parse("conv/conv2d#0:output"), Site.parse("/mean#0:output")
    once = realise(graph, Recipe((Round(first, G),), signature(graph)))
    twice = realise(once, Recipe((Round(second, grid(0.5, 3)),), signature(once)))
    grids = {"conv": G, "mean": grid(0.5, 3)}
    wanted = reference(graph, lambda here, value: put(value, grids[here]) if here in grids else value)
    torch.testing.assert_close(twice.module(X), wanted, rtol=1e-5, atol=1e-6)


class Two(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a * 2 + b


def test_inputs_stay_in_front_when_the_first_is_rounded() -> None:
    pair = {"a": torch.rand(2, 3), "b": torch.rand(2, 3)}
    graph = capture(Two(), pair)
    new = realise(graph, Recipe((Round(Site.parse("a/placeholder#0:output"), G),), signature(graph)))
    assert [node.op for node in new.nodes()][:2] == ["placeholder", "placeholder"]
    torch.testing.assert_close(new.module(pair["a"], pair["b"]), put(pair["a"], G) * 2 + pair["b"])


def test_tensor_inputs_flatten_lists(graph: Graph) -> None:
    read = tensor_inputs(operators(graph)["/cat#0"])
    assert [op_name(node) for node in read] == ["relu", "mul"]


C = "conv/conv2d#0:output"
WRONG: dict[str, tuple[Round | Replace, str]] = {
    "no such operator": (Round(Site.parse("conv/conv2d#1:output"), G), "did you mean 'conv/conv2d#0:output'"),
    "no such port": (Round(Site.parse("conv/conv2d#0:input7"), G), "port 'input7'"),
    "no bias to round": (Round(Site.parse("conv/conv2d#0:bias"), G), "port 'bias'"),
    "a scale of zero": (Round(Site.parse(C), grid(0.0)), "not positive"),
    "a scale that is no number": (Round(Site.parse(C), grid(float("nan"))), "not positive"),
    "too few scales": (Round(Site.parse("conv/conv2d#0:weight"), per_channel(3)), "3 scales along axis 0"),
    "no such axis": (Round(Site.parse("head/linear#0:weight"), per_channel(5, 2)), "axis 2"),
    "scales without axis": (
        Round(Site.parse(C), replace(per_channel(4), axis=None)),
        "scalars, or one value per channel",
    ),
    "a replaced activation": (Replace(Site.parse(C), torch.zeros(4)), "weight or bias port"),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_edits_that_do_not_fit_are_refused(graph: Graph, name: str) -> None:
    edit, message = WRONG[name]
    with pytest.raises(BadInput, match=message):
        realise(graph, Recipe((edit,), signature(graph)))


class Longer(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


@pytest.mark.parametrize(
    ("other", "first"),
    [(Net(7), r"head/linear#0\(5x8,5\) is head/linear#0\(7x8,7\)"), (Longer(), "missing is /relu#1")],
    ids=["other shapes", "one more operator"],
)
def test_another_graph_is_refused_by_its_first_difference(graph: Graph, other: nn.Module, first: str) -> None:
    recipe = Recipe((), signature(graph))
    assert realise(graph, recipe).module(X).shape == (3, 5)
    with pytest.raises(BadInput, match=first):
        realise(capture(other, torch.rand(2, 3, 6, 6)), recipe)


def full(graph: Graph) -> Recipe:
    conv, head = site_of("conv/conv2d#0", "output"), site_of("head/linear#0", "output")
    shared = torch.tensor(0.25)  # safetensors refuses memory that is shared; a recipe may share grids
    edits = (
        Migrate(conv, (head,), torch.zeros(4), torch.linspace(0.5, 2, 4)),
        Replace(site_of("head/linear#0", "bias"), torch.randn(5, generator=torch.Generator().manual_seed(0))),
        Round(site_of("conv/conv2d#0", "weight"), per_channel(4)),
        Round(conv, Affine(8, False, shared, torch.tensor(3))),
        Round(site_of("/mean#0", "output"), Affine(16, True, shared, torch.tensor(0))),
        Round(head, FloatType("bf16")),
    )
    return Recipe(edits, signature(graph), ("kept head in float32 \N{EM DASH} as asked",))


def test_a_recipe_survives_its_files_byte_for_byte(graph: Graph, tmp_path: Path) -> None:
    recipe = full(graph)
    first = recipe.save(tmp_path / "net.w8a8")
    loaded = Recipe.load(tmp_path / "net.w8a8")
    second = loaded.save(tmp_path / "again")
    assert [file.name for file in first] == ["net.w8a8.json", "net.w8a8.safetensors"]
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]
    assert loaded.signature == recipe.signature
    assert loaded.notes == recipe.notes
    assert [type(edit) for edit in loaded.edits] == [type(edit) for edit in recipe.edits]
    rounds = Recipe(recipe.rounds, signature(graph)), Recipe(loaded.rounds, signature(graph))
    assert torch.equal(*(realise(graph, one).module(X) for one in rounds))


def test_two_recipes_with_a_dot_in_their_names_do_not_collide(graph: Graph, tmp_path: Path) -> None:
    full(graph).save(tmp_path / "net.w8a8")
    Recipe((), signature(graph)).save(tmp_path / "net.w4a4")
    assert len(Recipe.load(tmp_path / "net.w8a8").edits) == 6


def _edited(files: tuple[Path, Path], **changes: object) -> None:
    data = json.loads(files[0].read_text())
    data["edits"][2] |= changes
    files[0].write_text(json.dumps(data))


DAMAGES: dict[str, Callable[[tuple[Path, Path]], object]] = {
    "no json": lambda files: files[0].unlink(),
    "no tensors": lambda files: files[1].unlink(),
    "no text": lambda files: files[0].write_bytes(b"\xff\xfe"),
    "not json": lambda files: files[0].write_text("{"),
    "deeply nested": lambda files: files[0].write_text("[" * 200_000),
    "a list": lambda files: files[0].write_text("[]"),
    "no version": lambda files: files[0].write_text("{}"),
    "newer": lambda files: files[0].write_text('{"version": 2}'),
    "a header of 2^60 bytes": lambda files: files[1].write_bytes(struct.pack("<Q", 1 << 60)),
    "cut off": lambda files: files[1].write_bytes(files[1].read_bytes()[:-8]),
    "an absent tensor": lambda files: _edited(files, scale="nothing"),
    "a billion bits": lambda files: _edited(files, bits=10**9),
    "an axis that is text": lambda files: _edited(files, axis="0"),
    "another edit": lambda files: _edited(files, edit="exec"),
    "another grid": lambda files: _edited(files, grid="float", kind="int3"),
    "no site": lambda files: _edited(files, site="here"),
}


@pytest.mark.parametrize("name", list(DAMAGES))
def test_damaged_files_are_refused_in_one_line(graph: Graph, tmp_path: Path, name: str) -> None:
    DAMAGES[name](full(graph).save(tmp_path / "net"))
    with pytest.raises(BadInput) as caught:
        Recipe.load(tmp_path / "net")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
