"""Records of language models: likelihoods as PyTorch computes them, row by row."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from seatrial.core.language import LanguageModelling, MultipleChoice, token_inputs, token_rows
from seatrial.core.sample import Sample
from seatrial.core.truth import Choices, Tokens
from seatrial.errors import BadInput

VOCABULARY = 11


def text(name: str, *ids: int) -> Sample:
    return Sample(name, 0, target=Tokens(ids))


def question(name: str, prompt: tuple[int, ...], *parts: tuple[int, ...], answer: int = 0) -> Sample:
    return Sample(name, answer, target=Choices(prompt, parts, tuple(3 * len(part) for part in parts), answer))


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 9), min_size=1, max_size=5))
@settings(max_examples=40, deadline=None)
def test_likelihoods_are_those_of_pytorch(seed: int, lengths: list[int]) -> None:
    rng = np.random.default_rng(seed)
    samples = [text(str(i), *rng.integers(0, VOCABULARY, n).tolist()) for i, n in enumerate(lengths)]
    inputs = token_inputs(samples)
    assert inputs["attention_mask"].sum(1).tolist() == lengths
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(lengths), max(lengths), VOCABULARY, generator=generator) * 3
    table = LanguageModelling().answer(logits, samples)
    assert table.schema == LanguageModelling.SCHEMA
    for i, row in enumerate(table.to_pylist()):
        before, after = logits[i, : lengths[i] - 1], inputs["input_ids"][i, 1 : lengths[i]]
        assert row["tokens"] == lengths[i] - 1
        assert row["nll"] == pytest.approx(float(F.cross_entropy(before, after, reduction="sum")), rel=1e-5)
        assert row["correct_tokens"] == int((before.argmax(1) == after).sum())
        # What fills the row, and the rows around it, change nothing.
        alone = LanguageModelling().answer(logits[i : i + 1, : lengths[i]], [samples[i]])
        assert alone.equals(table.slice(i, 1))


def test_choices_are_weighed_alone_and_by_length() -> None:
    # At each place, token t has logit `t`; all places alike, so likelihoods add up by hand.
    logits = torch.arange(VOCABULARY).double().expand(5, 6, VOCABULARY)
    total = math.log(sum(math.exp(t) for t in range(VOCABULARY)))
    samples = [
        question("a", (1, 2), (10,), (9, 10, 10), (10, 9), answer=2),
        question("b", (1,), (3,), (4,), answer=1),
    ]
    rows = MultipleChoice().answer(logits, samples).to_pylist()
    assert rows[0]["choice_nll"] == pytest.approx([total - 10, 3 * total - 29, 2 * total - 19])
    assert rows[0]["choice_bytes"] == [3, 9, 6]
    assert [rows[0][name] for name in ("label", "answer", "answer_by_length")] == [2, 0, 0]
    assert [rows[1][name] for name in ("answer", "correct", "correct_by_length")] == [1, True, True]
    longer = Sample("c", 1, target=Choices((1,), ((10,), (10, 9)), (1, 9), 1))
    (row,) = MultipleChoice().answer(logits[:2], [longer]).to_pylist()
    assert (row["answer"], row["answer_by_length"]) == (0, 1)
    assert (row["correct"], row["correct_by_length"]) == (False, True)


def test_rows_of_choices_repeat_the_prompt() -> None:
    rows = token_rows([question("a", (1, 2), (3,), (4, 5)), text("b", 7, 8)])
    assert [row.tolist() for row in rows] == [[1, 2, 3], [1, 2, 4, 5], [7, 8]]


def test_likelihoods_that_are_no_numbers_never_win() -> None:
    logits = torch.zeros(2, 2, VOCABULARY)
    logits[0] = math.nan
    (row,) = MultipleChoice().answer(logits, [question("a", (1,), (2,), (3,))]).to_pylist()
    assert (row["answer"], row["answer_by_length"], row["correct"]) == (1, 1, False)
    (row,) = MultipleChoice().answer(torch.full_like(logits, math.nan), [question("a", (1,), (2,), (3,))]).to_pylist()
    assert (row["answer"], row["correct"]) == (-1, False)
    (row,) = LanguageModelling().answer(logits[:1], [text("a", 1, 2)]).to_pylist()
    assert math.isnan(row["nll"])


def test_bad_input_is_named() -> None:
    logits = torch.zeros(1, 3, VOCABULARY)
    with pytest.raises(BadInput, match=r"shape \(1, 2\) for 1 rows of tokens"):
        LanguageModelling().answer(torch.zeros(1, 2), [text("a", 1, 2)])
    with pytest.raises(BadInput, match="logits for 3 tokens of a vocabulary of 11; wanted 3 tokens with ids up to 11"):
        LanguageModelling().answer(logits, [text("a", 1, 2, 11)])
    with pytest.raises(BadInput, match="wanted 4 tokens"):
        LanguageModelling().answer(logits, [text("a", 1, 2, 3, 4)])
    with pytest.raises(BadInput, match="sample 'a' with choices"):
        LanguageModelling().answer(logits, [question("a", (1,), (2,))])
    with pytest.raises(BadInput, match="sample 'a' without choices"):
        MultipleChoice().answer(logits, [text("a", 1, 2)])
    with pytest.raises(BadInput, match="sample 'a' without tokens"):
        LanguageModelling().answer(logits, [Sample("a", 0)])
    with pytest.raises(BadInput, match="no more tokens than are judged"):
        MultipleChoice().answer(logits, [question("a", (), (2, 3))])


def test_the_loss_of_transformers_is_met_on_stories(shared: Path) -> None:
    folder = shared / "models" / "stories260k"
    import transformers

    network = transformers.LlamaForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    with open(folder / "sampled_stories.jsonl", encoding="utf-8") as file:
        samples = [text(str(i), *json.loads(next(file))["ids"]) for i in range(4)]
    with torch.no_grad():
        table = LanguageModelling().answer(network(**token_inputs(samples)).logits, samples)
        for row, sample in zip(table.to_pylist(), samples, strict=True):
            ids = torch.tensor([sample.target.ids])
            loss = float(network(ids, labels=ids).loss)
            assert row["nll"] / row["tokens"] == pytest.approx(loss, rel=1e-5)
