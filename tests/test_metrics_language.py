"""Perplexity and multiple choice: by hand, by brute force, and one published network."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from seatrial.core.language import LanguageModelling, MultipleChoice, token_inputs
from seatrial.core.sample import Sample
from seatrial.core.truth import Tokens
from seatrial.errors import BadInput
from seatrial.metrics.language import (
    choice_accuracy,
    next_token_accuracy,
    perplexity,
    perplexity_interval,
    perplexity_ratio_interval,
)


def texts(tokens: list[int], nll: list[float], correct: list[int] | None = None) -> pa.Table:
    names = [f"s{i:03}" for i in range(len(tokens))]
    return pa.table([names, tokens, nll, correct or [0] * len(tokens)], schema=LanguageModelling.SCHEMA)


def test_tokens_weigh_alike_wherever_they_stand() -> None:
    records = texts([1, 3], [math.log(8), 3 * math.log(2)], [0, 3])
    assert perplexity(records) == pytest.approx(2 ** ((3 + 3) / 4))
    assert next_token_accuracy(records) == 0.75
    assert perplexity(texts([1], [1e9])) == math.inf
    assert math.isnan(perplexity(texts([1, 1], [1.0, math.nan])))


def test_intervals_are_those_of_texts_drawn_one_by_one() -> None:
    rng = np.random.default_rng(2)
    tokens = rng.integers(5, 50, 80)
    nll = tokens * rng.uniform(1, 3, 80)
    records = texts(tokens.tolist(), nll.tolist())
    interval = perplexity_interval(records, rng=np.random.default_rng(0))
    drawn = []
    for _ in range(4000):
        chosen = rng.integers(0, 80, 80)
        drawn.append(math.exp(nll[chosen].sum() / tokens[chosen].sum()))
    assert (interval.low, interval.high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), rel=0.02)
    # A loss that every text shares is seen where the intervals of both would hide it.
    after = texts(tokens.tolist(), (nll + 0.02 * tokens).tolist()).take(np.arange(80)[::-1])
    ratio = perplexity_ratio_interval(records, after, rng=np.random.default_rng(0))
    assert (ratio.low, ratio.high) == pytest.approx((math.exp(0.02), math.exp(0.02)))


def test_empty_and_broken_records_are_named() -> None:
    for figure in (perplexity, next_token_accuracy):
        with pytest.raises(BadInput, match="without a predicted token"):
            figure(texts([0], [0.0]))
    with pytest.raises(BadInput, match="without a finite likelihood"):
        perplexity_interval(texts([1, 1], [1.0, math.nan]), rng=np.random.default_rng(0))
    with pytest.raises(BadInput, match="without a sample"):
        perplexity_interval(texts([], []), rng=np.random.default_rng(0))


def test_choices_count_by_likelihood_or_by_length() -> None:
    names = ["a", "b", "c"]
    columns = [names, [0, 1, 0], [0, 1, 1], [1, 1, 0], [True, True, False], [False, True, True], [[1.0]] * 3, [[1]] * 3]
    records = pa.table(columns, schema=MultipleChoice.SCHEMA)
    assert choice_accuracy(records, "likelihood") == choice_accuracy(records) == pytest.approx(2 / 3)


def test_stories_have_their_published_perplexity(shared: Path) -> None:
    import transformers

    folder = shared / "models" / "stories260k"
    network = transformers.LlamaForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    with open(folder / "sampled_stories.jsonl", encoding="utf-8") as file:
        samples = [Sample(f"{i:03}", 0, target=Tokens(tuple(json.loads(next(file))["ids"]))) for i in range(60)]
    with torch.no_grad():
        records = LanguageModelling().answer(network(**token_inputs(samples)).logits, samples)
    # The README of the model, computed apart from this code, says 3.01 for the first 500, which these 60 stand for.
    assert perplexity(records) == pytest.approx(3.01, abs=0.1)
