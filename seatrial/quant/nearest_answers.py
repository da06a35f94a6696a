"""Which of several ways to round a network leaves its answers nearest to what they were."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from seatrial.core.graph import Graph
from seatrial.core.predictor import Inputs
from seatrial.core.realise import realise
from seatrial.core.recipe import Recipe, Round
from seatrial.core.sites import signature
from seatrial.numerics.observe import tensors_of
from seatrial.quant.channel_ranges import kept_rows, token_mask


def nearest_answers(graph: Graph, batches: Sequence[Inputs], choices: Sequence[Sequence[Round]]) -> int:
    """Return the index of the rounds with the least squared error of all outputs, without what fills sentences up.

    The first of equals. Source: Wei et al. 2022, section 4.2, the loss of its coarse stage.
    """
    networks = [realise(graph, Recipe(tuple(rounds), signature(graph))) for rounds in choices]
    errors = [0.0] * len(networks)
    for batch in batches:
        tensors = tensors_of(graph, batch)
        mask = token_mask(graph, tensors)
        wanted = _outputs(graph, tensors, mask)
        for index, network in enumerate(networks):
            found = _outputs(network, tensors, mask)
            errors[index] += sum(float((one - other).double().square().sum()) for one, other in zip(found, wanted))
    return errors.index(min(errors))


def _outputs(graph: Graph, tensors: Sequence[Tensor], mask: Tensor | None) -> list[Tensor]:
    with torch.no_grad():
        answers = tree_leaves(graph.module(*tensors))
    floats = [one for one in answers if isinstance(one, Tensor) and one.is_floating_point()]
    return [one if one.ndim < 3 else kept_rows(one, mask) for one in floats]
