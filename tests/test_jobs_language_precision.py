"""A language model in narrower float types: the figures are those of its records, with the status told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import seatrial
from seatrial.bench.texts import text_records
from seatrial.core.graph import GraphPredictor, capture
from seatrial.core.language import LanguageModelling, MultipleChoice
from seatrial.core.task import LabelMap
from seatrial.data.task_files import open_task_data
from seatrial.data.text_set import TextSet
from seatrial.errors import BadInput
from seatrial.metrics.language import choice_accuracy, perplexity
from seatrial.models.opened import Model, digest_of


class Bigram(nn.Module):
    """The next token hangs on the last one alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(128, 16), nn.Linear(16, 128)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return 4 * self.head(self.embedding(input_ids)) + 0 * attention_mask[..., None]


@pytest.fixture(scope="module")
def model() -> Model:
    example = {name: torch.ones(2, 8, dtype=torch.int64) for name in ("input_ids", "attention_mask")}
    graph = capture(Bigram().eval(), example)
    return Model("bigram", "bigram", graph, None, LabelMap(), None, digest_of(graph), kind="text")


def letters(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def opened(folder: Path, task: str) -> TextSet:
    rng = np.random.default_rng(0)
    words = ["".join(chr(code) for code in rng.integers(97, 123, 7)) for _ in range(160)]
    rows = [{"text": word} for word in words]
    if task == "multiple-choice":
        rows = [{"question": word[:2], "choices": [word[2:], word[::-1]], "answer": 0} for word in words]
    file = folder / f"{task}.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    found = open_task_data(file, task, encode=letters, length=9)
    assert isinstance(found, TextSet)
    return found


def test_perplexity_in_two_types_is_that_of_their_records(model: Model, tmp_path: Path) -> None:
    data = opened(tmp_path, "language-modelling")
    result = seatrial.language_precision(model, data, threads=1, batch=32)
    tables = {
        kind: text_records(GraphPredictor(model.graph, "cpu", kind), LanguageModelling(), data, batch=32)
        for kind in ("as-is", "fp16", "bf16")
    }
    for cell in result["cells"]:
        value, clean = perplexity(tables[cell["option"]]), perplexity(tables["as-is"])
        assert cell["status"] == "done"
        assert (cell["metric"], cell["value"], cell["clean"]) == ("perplexity", value, clean)
        assert cell["difference"] == pytest.approx(value / clean - 1)
        assert cell["difference_low"] < cell["difference"] < cell["difference_high"]
        assert cell["low"] < value < cell["high"]
    moved = {cell["option"]: cell["difference_high"] - cell["difference_low"] for cell in result["cells"]}
    assert moved["fp16"] < moved["bf16"]  # three more bits of mantissa


def test_questions_have_accuracy_and_churn(model: Model, tmp_path: Path) -> None:
    data = opened(tmp_path, "multiple-choice")
    (cell,) = seatrial.language_precision(model, data, "multiple-choice", precisions=["bf16"], threads=1)["cells"]
    before, after = (
        text_records(GraphPredictor(model.graph, "cpu", kind), MultipleChoice(), data) for kind in ("as-is", "bf16")
    )
    assert (cell["clean"], cell["value"]) == (choice_accuracy(before), choice_accuracy(after))
    changed = [a != b for a, b in zip(*(t["answer_by_length"].to_pylist() for t in (before, after)))]
    assert cell["churn"]["value"] == np.mean(changed)
    assert cell["churn"]["low"] <= cell["churn"]["value"] <= cell["churn"]["high"]


def test_what_changes_nothing_is_no_noise(tmp_path: Path) -> None:
    class Constant(nn.Module):
        def forward(self, input_ids: Tensor) -> Tensor:
            return torch.nn.functional.one_hot((input_ids + 1) % 128, 128).float()

    graph = capture(Constant().eval(), {"input_ids": torch.ones(2, 8, dtype=torch.int64)})
    model = Model("constant", "constant", graph, None, LabelMap(), None, digest_of(graph), kind="text")
    data = opened(tmp_path, "language-modelling")
    cells = seatrial.language_precision(model, data, limit=5, threads=1)["cells"]
    assert [(cell["status"], cell["value"], cell["n"]) for cell in cells] == [("no-noise", None, 5)] * 2


def test_stories_lose_next_to_nothing(shared: Path) -> None:
    result = seatrial.language_precision(
        f"hf:{shared / 'models' / 'stories260k'}", shared / "text" / "wikitext2" / "valid.txt", length=64, limit=12
    )
    assert result["data"]["n"] == 12
    for cell in result["cells"]:
        assert 50 < cell["clean"] < 1000
        assert abs(cell["difference"]) < 0.02


def test_what_cannot_be_asked_is_named(model: Model, tmp_path: Path) -> None:
    data = opened(tmp_path, "language-modelling")
    with pytest.raises(BadInput, match=r"int8.*fp16"):
        seatrial.language_precision(model, data, precisions=["int8"])
    with pytest.raises(BadInput, match="unknown text task 'detection'"):
        seatrial.language_precision(model, data, "detection")
    with pytest.raises(BadInput, match="brings no tokenizer"):
        seatrial.language_precision(model, tmp_path / "language-modelling.jsonl")
    with pytest.raises(BadInput, match="a causal language model"):
        seatrial.language_precision(replace(model, kind="image"), data)
