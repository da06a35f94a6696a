"""AWQ: scales that change nothing but what rounding loses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers_graphs import answer, captured, inputs_of

from seatrial.core.chance import generator
from seatrial.core.graph import Graph, capture
from seatrial.core.precision import Precision
from seatrial.core.realise import realise
from seatrial.core.recipe import Migrate, Recipe, Round
from seatrial.core.sites import signature, site_of
from seatrial.errors import BadInput
from seatrial.quant.awq import AWQ, NO_PLACE, output_error
from seatrial.quant.gptq import GPTQ
from seatrial.quant.nearest import Nearest
from seatrial.quant.weight_grids import grouped_grid
from seatrial.quant.weight_only import weight_only

RTN = Nearest(bias_correction=False)
WANTED = Precision(4, signed=False, group=8)


class Place(nn.Module):
    """A norm with a few large gains and two linear operators that read it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.one, self.other = nn.LayerNorm(24), nn.Linear(24, 20), nn.Linear(24, 12, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        read = self.norm(x.flatten(2))
        return torch.cat([self.one(read), self.other(read)], -1)


def place() -> tuple[Graph, list[Tensor]]:
    torch.manual_seed(0)
    module = Place()
    with torch.no_grad():
        module.norm.weight[[3, 9, 17]] = 12.0
    batches = [torch.randn(6, 3, 4, 6, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    return capture(module, batches[0]), batches


SITES = {site_of(f"{name}/linear#0", "weight"): WANTED for name in ("one", "other")}


def error(graph: Graph, recipe: Recipe, batches: list[Tensor]) -> float:
    rounded = realise(graph, recipe)
    return sum(float((answer(rounded, x) - answer(graph, x)).double().square().sum()) for x in batches)


def test_the_scale_is_the_best_power_of_the_mean_absolute_input() -> None:
    graph, batches = place()
    recipe = AWQ(RTN).plan(graph, batches, SITES, rng=generator(0, "awq"))
    (migration,) = [edit for edit in recipe.edits if isinstance(edit, Migrate)]
    assert not bool(migration.shift.any())
    assert [str(site) for site in migration.consumers] == ["one/linear#0:output", "other/linear#0:output"]
    # By brute force: every exponent as a recipe of its own, judged by the outputs themselves.
    norm = nn.LayerNorm(24)
    norm.weight.data = dict(graph.module.named_parameters())["inner.norm.weight"].detach()
    with torch.no_grad():
        mean = torch.cat([norm(x.flatten(2)).reshape(-1, 24) for x in batches]).abs().mean(0)
    errors, scales = [], []
    for alpha in np.arange(20) / 20:
        scale = mean**alpha
        scale = scale / (scale.max() * scale.min()).sqrt()
        edit = Migrate(migration.producer, migration.consumers, torch.zeros(24), scale)
        moved = realise(graph, Recipe((edit,), signature(graph)))
        rounds = RTN.plan(moved, batches, SITES, rng=generator(0, "awq")).edits
        errors.append(error(graph, Recipe((edit, *rounds), signature(graph)), batches))
        scales.append(scale)
    torch.testing.assert_close(migration.scale, scales[int(np.argmin(errors))])
    assert error(graph, recipe, batches) == pytest.approx(min(errors), rel=1e-3)
    assert min(errors) < 0.8 * errors[0]
    assert errors[0] == pytest.approx(error(graph, RTN.plan(graph, batches, SITES, rng=generator(0, "x")), batches))


def test_the_error_of_outputs_is_told_by_the_gram_matrix() -> None:
    made = torch.Generator().manual_seed(0)
    x, weight = torch.randn(50, 16, generator=made), torch.randn(4, 16, generator=made)
    scale = torch.rand(16, generator=made) + 0.5
    recipe = grouped_grid(weight * scale, WANTED)
    steps, zeros = (torch.repeat_interleave(value, 8, 1) for value in (recipe.scale, recipe.zero_point))
    codes = ((weight * scale / steps).round() + zeros).clamp(0, 15)
    wanted = ((x / scale) @ ((codes - zeros) * steps).T - x @ weight.T).square().sum()
    assert output_error(weight, x.T @ x, WANTED, scale) == pytest.approx(float(wanted), rel=1e-4)


@pytest.mark.parametrize("name", ["llama", "opt", "bert", "bloom"])
def test_scales_preserve_the_function(name: str) -> None:
    graph, batches = captured(name), [inputs_of(name, seed) for seed in range(2)]
    sites = weight_only(graph, 3, 8)
    recipe = AWQ(RTN).plan(graph, batches, sites, rng=generator(0, name))
    moves = tuple(edit for edit in recipe.edits if isinstance(edit, Migrate))
    assert moves
    assert {edit.site for edit in recipe.rounds} == set(sites)
    moved, whole = answer(realise(graph, Recipe(moves, signature(graph))), batches[0]), answer(graph, batches[0])
    assert float((moved - whole).norm() / whole.norm()) < 1e-5


def test_gated_projections_are_places_too() -> None:
    graph, batch = captured("llama"), inputs_of("llama")
    sites = weight_only(graph, 3, 8)
    producers = {
        gated: {
            edit.producer.path.rsplit(".", 1)[-1]
            for edit in AWQ(RTN, gated=gated).plan(graph, [batch], sites, rng=generator(0, "gated")).edits
            if isinstance(edit, Migrate)
        }
        for gated in (False, True)
    }
    assert "up_proj" in producers[True]
    assert "up_proj" not in producers[False]


def test_another_quantizer_may_round_afterwards() -> None:
    graph, batches = place()
    recipe = AWQ(GPTQ(RTN)).plan(graph, batches, SITES, rng=generator(0, "both"))
    assert {edit.site for edit in recipe.edits if isinstance(edit, Round)} == set(SITES)
    assert error(graph, recipe, batches) < error(
        graph, AWQ(RTN).plan(graph, batches, SITES, rng=generator(0, "awq")), batches
    )


def test_without_a_place_nothing_is_scaled_and_said() -> None:
    torch.manual_seed(0)
    graph = capture(nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Linear(8, 2)), torch.rand(2, 3, 2, 2))
    recipe = AWQ(RTN).plan(graph, [torch.rand(4, 3, 2, 2)], weight_only(graph, 4, 8), rng=generator(0, "none"))
    assert recipe.notes == (NO_PLACE,)
    assert len(recipe.rounds) == 1
    with pytest.raises(BadInput, match="no calibration data"):
        AWQ().plan(graph, [], weight_only(graph, 4, 8), rng=generator(0, "none"))
