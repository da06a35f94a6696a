"""Ranges of migrated channels: those that hooks in the eager network see, and what algebra makes of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers_graphs import MODELS, captured, inputs_of

from seatrial.core.chance import generator
from seatrial.core.graph import capture
from seatrial.core.recipe import Migrate, Recipe, Replace
from seatrial.core.sites import signature, site_of
from seatrial.errors import BadInput
from seatrial.quant.migrated_ranges import migrated_ranges
from seatrial.quant.migration_places import migration_places

BATCHES = (0, 1)


def recipe_for(name: str) -> Recipe:
    """A migration by drawn numbers at each place."""
    graph, rng = captured(name), generator(0, "migrations", name)
    edits = []
    for place in migration_places(graph):
        channels = 32 if place.kind == "norm" else 64
        shift = rng.normal(size=channels) if place.may_shift else np.zeros(channels)
        consumers = tuple(site_of(one, "output") for one in place.consumers)
        scale = np.exp(rng.normal(size=channels))
        edits.append(Migrate(site_of(place.producer, "output"), consumers, *map(torch.from_numpy, (shift, scale))))
    return Recipe(tuple(edits), signature(graph))


def rows_seen(model: nn.Module, module: str, name: str) -> np.ndarray:
    """What one module reads in the eager network, as rows; tokens outside of the mask are left out."""
    kept: list[np.ndarray] = []
    for seed in BATCHES:
        inputs = inputs_of(name, seed)
        seen: list[Tensor] = []

        def see(_: nn.Module, args: tuple[Tensor, ...], seen: list[Tensor] = seen) -> None:
            seen.append(args[0])

        hook = model.get_submodule(module).register_forward_pre_hook(see)
        with torch.no_grad():
            model(inputs) if isinstance(inputs, Tensor) else model(**inputs)
        hook.remove()
        mask = None if isinstance(inputs, Tensor) else inputs["attention_mask"].numpy().astype(bool)
        rows = seen[0].numpy()
        kept.append(rows.reshape(-1, rows.shape[-1]) if mask is None else rows[mask])
    return np.concatenate(kept)


@pytest.mark.parametrize(
    ("name", "readers"),
    [
        (
            "bert",
            {
                "bert.embeddings.LayerNorm/layer_norm#0": "bert.encoder.layer.0.attention.self.query",
                "bert.encoder.layer.0.output.LayerNorm/layer_norm#0": "bert.encoder.layer.1.attention.self.value",
            },
        ),
        (
            "llama",
            {
                "model.layers.1.input_layernorm/mul#1": "model.layers.1.self_attn.k_proj",
                "model.layers.0.mlp.up_proj/linear#0": "model.layers.0.mlp.down_proj",  # the gated product
            },
        ),
        ("vit", {"blocks.1.norm1/layer_norm#0": "blocks.1.attn.qkv"}),
    ],
)
def test_ranges_are_those_of_the_eager_network(name: str, readers: dict[str, str]) -> None:
    graph, recipe = captured(name), recipe_for(name)
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    made = torch.Generator().manual_seed(1)
    with torch.no_grad():  # as `captured` changes it
        for module in model.modules():
            if type(module).__name__.endswith("Norm"):
                for parameter in module.parameters(recurse=False):
                    parameter.add_(0.3 * torch.randn(parameter.shape, generator=made))
    found = {one.place.operator: one for one in migrated_ranges(graph, recipe, [inputs_of(name, s) for s in BATCHES])}
    assert list(found) == [place.producer for place in migration_places(graph)]
    edits = {edit.producer.operator: edit for edit in recipe.edits if isinstance(edit, Migrate)}
    for place, module in readers.items():
        rows, edit = rows_seen(model, module, name), edits[place]
        assert found[place].before.low.numpy() == pytest.approx(rows.min(0), rel=1e-3, abs=1e-5)
        assert found[place].before.high.numpy() == pytest.approx(rows.max(0), rel=1e-3, abs=1e-5)
        moved = (rows - edit.shift.numpy()) / edit.scale.numpy()
        assert found[place].after.low.numpy() == pytest.approx(moved.min(0), rel=1e-3, abs=1e-4)
        assert found[place].after.high.numpy() == pytest.approx(moved.max(0), rel=1e-3, abs=1e-4)


def test_two_migrations_of_one_place_are_one() -> None:
    graph = captured("vit")
    first = next(iter(edit for edit in recipe_for("vit").edits if isinstance(edit, Migrate)))
    twice = Recipe((first, first), signature(graph))
    (found,) = migrated_ranges(graph, twice, [inputs_of("vit")])
    scale, shift = first.scale, first.shift
    wanted = ((found.before.high - shift) / scale - shift) / scale
    assert torch.allclose(found.after.high.double(), wanted, rtol=1e-3, atol=1e-4)


def test_other_edits_are_not_looked_at() -> None:
    graph = captured("vit")
    bias = Replace(site_of("head/linear#0", "bias"), torch.full((5,), 100.0))
    assert migrated_ranges(graph, Recipe((bias,), signature(graph)), [inputs_of("vit")]) == []
    edits = recipe_for("vit").edits
    one, other = (
        migrated_ranges(graph, Recipe(part, signature(graph)), [inputs_of("vit")]) for part in (edits, (*edits, bias))
    )
    assert all(torch.equal(a.after.low, b.after.low) for a, b in zip(one, other, strict=True))


def test_convolutions_have_their_channels_first() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(4 * 16, 2)).eval()
    picture = torch.rand(4, 3, 8, 8)
    graph = capture(model, picture)
    scale = torch.tensor([1.0, 2, 4, 8, 16, 32])
    producer, consumer = site_of("0/conv2d#0", "output"), site_of("2/conv2d#0", "output")
    (found,) = migrated_ranges(
        graph, Recipe((Migrate(producer, (consumer,), torch.zeros(6), scale),), signature(graph)), [picture]
    )
    with torch.no_grad():
        high = model[1](model[0](picture)).amax((0, 2, 3))
    assert torch.allclose(found.before.high, high, atol=1e-6)
    assert torch.allclose(found.after.high, high / scale, atol=1e-6)


def test_values_that_are_not_finite_are_named() -> None:
    broken = inputs_of("vit")
    assert isinstance(broken, Tensor)
    broken[0, 0, 0, 0] = float("nan")
    with pytest.raises(BadInput, match=r"not finite at blocks.0.attn.qkv/linear#0:input0"):
        migrated_ranges(captured("vit"), recipe_for("vit"), [broken])
