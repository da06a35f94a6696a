"""A text model from its folder to quantized files: figures are those of its records and of transformers."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F

import seatrial
from seatrial.bench.texts import text_records
from seatrial.catalogue import entries, load
from seatrial.cli.main import main
from seatrial.core.graph import GraphPredictor
from seatrial.core.language import token_inputs
from seatrial.core.placement import PlacementRules
from seatrial.core.recipe import Migrate, Recipe
from seatrial.errors import BadInput
from seatrial.jobs.quantized import quantize_graph
from seatrial.jobs.settings import Settings
from seatrial.jobs.text_figures import TextFigure
from seatrial.jobs.text_settings import TextSettings
from seatrial.jobs.text_subject import open_text_subject
from seatrial.metrics.accuracy import agreement, top1
from seatrial.metrics.intervals import wilson
from seatrial.metrics.language import perplexity
from seatrial.models.opened import open_model

transformers = pytest.importorskip("transformers")

WORDS = [f"{first}{second}" for first in "bdgklmn" for second in ("a", "e", "i", "o", "u")]
SPECIAL = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
SIZES = {
    "vocab_size": len(SPECIAL) + len(WORDS),
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 24,
    "pad_token_id": 0,
}
QUICK = {"threads": 1, "calibration_samples": 16}


def saved(folder: Path, kind: str) -> Path:
    """Write a random network with a tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = Tokenizer(models.WordLevel({word: at for at, word in enumerate(SPECIAL + WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    around = "[CLS] $A [SEP]" if kind == "bert" else "[CLS] $A"
    named = [(name, SPECIAL.index(name)) for name in ("[CLS]", "[SEP]")]
    words.post_processor = processors.TemplateProcessing(single=around, special_tokens=named)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "bos_token": "[CLS]", "eos_token": "[SEP]"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=24, **names)
    torch.manual_seed(0)
    if kind == "bert":
        labels = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
        network = transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES, **labels))
    elif kind == "masked":
        network = transformers.BertForMaskedLM(transformers.BertConfig(**SIZES))
    else:
        network = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, bos_token_id=1, eos_token_id=2))
    with torch.no_grad():  # as it begins, every text gets nearly the same answer
        for parameter in network.parameters():
            parameter.mul_(8 if parameter.ndim == 2 else 1)
    network.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def sentences(count: int, longest: int) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, rng.integers(2, longest))) for _ in range(count)]


@pytest.fixture(scope="module", autouse=True)
def _opened_once() -> Iterator[None]:
    """Each network is captured once, however often it is asked for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("seatrial.jobs.text_subject.open_model", cache(open_model))
        yield


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("bert"), "bert")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "reviews.tsv"
    marks = np.random.default_rng(1).choice(["good", "bad"], 120)
    rows = [f"{mark}\t{text}" for mark, text in zip(marks, sentences(120, 30))]
    file.write_text("\n".join(["label\ttext_a", *rows]))
    return file


@pytest.fixture(scope="module")
def classified(bert: Path, reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("classified")
    return seatrial.quantize(f"hf:{bert}", reviews, out=out, target="onnxruntime", batch=32, **QUICK)


def test_a_classifier_answers_as_in_transformers(classified: dict[str, Any], bert: Path, reviews: Path) -> None:
    network = transformers.BertForSequenceClassification.from_pretrained(bert).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(bert)
    rows = pq.read_table(classified["records"]["float@torch"]).to_pylist()
    lines = reviews.read_text().split("\n")[1:]
    assert (len(rows), classified["data"]["n"]) == (104, 104)  # 16 calibrate
    for row in rows:
        mark, text = lines[int(row["sample"])].split("\t")
        with torch.no_grad():
            logits = network(**tokenizer(text, truncation=True, max_length=24, return_tensors="pt")).logits[0]
        label = ["bad", "good"].index(mark)
        assert (row["label"], row["answer"]) == (label, int(logits.argmax()))
        assert row["margin"] == pytest.approx(float(logits[label] - logits[1 - label]), rel=1e-3, abs=1e-4)
    assert any("texts were cut off after 24 tokens" in note for note in classified["warnings"])


def test_the_figures_of_a_classifier_are_those_of_its_records(classified: dict[str, Any]) -> None:
    tables = {label: pq.read_table(file) for label, file in classified["records"].items()}
    assert list(tables) == ["float@torch", "float@onnxruntime", "w8a8@torch", "w8a8@onnxruntime"]
    own, whole = tables["w8a8@onnxruntime"], tables["float@torch"]
    assert (classified["task"], classified["metric"], classified["value"]) == ("classification", "top1", top1(own))
    interval = wilson(sum(own["correct"].to_pylist()), len(own))
    assert (classified["low"], classified["high"]) == (interval.low, interval.high)
    assert classified["agreement"] == agreement(own, whole)
    assert classified["agreement"] > 0.9
    assert classified["agreement_simulated"] == agreement(own, tables["w8a8@torch"])
    assert classified["difference"]["value"] == pytest.approx(top1(own) - top1(whole))
    assert classified["difference"]["low"] <= classified["difference"]["value"] <= classified["difference"]["high"]
    assert classified["ratio"] is None
    assert classified["latency_ms"]["batch"] == 1
    assert classified["latency_tokens"] == 24
    for told in classified["variants"]:
        assert (told["latency_ms"] is None) == (told["target"] == "torch")
        assert told["value"] == top1(tables[f"{told['name']}@{told['target']}"])
    assert {site["bits"] for site in classified["sites"]} <= {7, 8}
    assert json.loads((Path(classified["files"][0]).parent / "quantize.json").read_text()) == classified


def test_the_folder_classifies_by_itself(classified: dict[str, Any], reviews: Path) -> None:
    files = {Path(file).name: Path(file) for file in classified["files"]}
    assert {"model.onnx", "tokenizer.json", "text.json", "run.py"} <= set(files)
    rows = pq.read_table(classified["records"]["w8a8@onnxruntime"]).to_pylist()[:30]
    lines = reviews.read_text().split("\n")[1:]
    texts = [lines[int(row["sample"])].split("\t")[1] for row in rows]
    done = subprocess.run(
        [sys.executable, str(files["run.py"]), *texts], capture_output=True, text=True, check=True, timeout=300
    )
    said = [line.rsplit("\t", 1)[1] for line in done.stdout.splitlines()]
    assert said == [["bad", "good"][row["answer"]] for row in rows]


def test_a_method_is_shown_before_and_after(
    bert: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, told = tmp_path / "out", tmp_path / "told.json"
    arguments = ["quantize", f"hf:{bert}", "--data", str(reviews), "--method", "os-plus", "--target", "torch"]
    arguments += ["--limit", "16", "--calibration-samples", "16", "--threads", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["seatrial", *arguments, "--json", str(told)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    said = capsys.readouterr().out
    assert "os-plus, dB" in said
    assert "At 3 places (medians) the range of the tensor went from" in said
    found = json.loads(told.read_text())
    assert f"report: {found['report']}" in said
    assert Path(found["report"]) == out / "quantize.html"
    assert "Channels before and after" in Path(found["report"]).read_text(encoding="utf-8")
    assert all(row["reader_sqnr_db_before"] is not None for row in found["sites"])
    assert str(out / "recipe.json") in found["files"]
    recipe = Recipe.load(out / "recipe")
    moved = [edit for edit in recipe.edits if isinstance(edit, Migrate)]
    assert {str(edit.producer) for edit in moved} == {one["place"] for one in found["channel_ranges"]}
    assert {str(edit.site) for edit in recipe.rounds} == {row["site"] for row in found["sites"]}
    page = (Path(__file__).resolve().parents[1] / "docs" / "json.md").read_text(encoding="utf-8")
    section = page.split("\n## quantize\n")[1].split("\n## ")[0]
    place = found["channel_ranges"][0]
    keys = [*found, *found["sites"][0], *place, *place["before"]]
    assert [key for key in keys if f"`{key}`" not in section] == []


def guide(network: Any, ids: list[int], window: int, stride: int) -> tuple[float, int]:
    """The losses of transformers' guide on one text, and how many tokens were judged."""
    losses, before = [], 0
    for start in range(0, len(ids), stride):
        piece = torch.tensor([ids[start : start + window]])
        end = start + piece.shape[1]
        targets = piece[0].clone()
        targets[: piece.shape[1] - (end - before)] = -100
        with torch.no_grad():
            logits = network(input_ids=piece).logits[0, :-1]
        each = F.cross_entropy(logits.double(), targets[1:], ignore_index=-100, reduction="none")
        losses += each[targets[1:] != -100].tolist()
        before = end
        if end == len(ids):
            break
    return sum(losses), len(losses)


def test_perplexity_from_the_command_line(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = "openvino" if load(entries("target")["openvino"]).installed() else "onnxruntime"
    text = tmp_path / "test.txt"
    text.write_text("\n".join(sentences(40, 20)))
    other = tmp_path / "valid.txt"
    other.write_text("\n".join(reversed(sentences(60, 20)[40:])))
    told = tmp_path / "told.json"
    arguments = ["quantize", f"hf:{llama}", "--data", str(text), "--task", "perplexity", "--window", "16"]
    arguments += ["--stride", "8", "--calibration", str(other), "--target", target, "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["seatrial", *arguments, "--out", str(tmp_path / "out"), "--json", str(told)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert f"w8a8@{target}" in capsys.readouterr().out
    found = json.loads(told.read_text())
    network = transformers.LlamaForCausalLM.from_pretrained(llama).eval()
    ids = transformers.AutoTokenizer.from_pretrained(llama).encode(text.read_text())
    total, judged = guide(network, ids, 16, 8)
    tables = {label: pq.read_table(file) for label, file in found["records"].items()}
    whole, own = tables["float@torch"], tables[f"w8a8@{target}"]
    assert sum(whole["tokens"].to_pylist()) == judged == len(ids) - 1
    assert perplexity(whole) == pytest.approx(math.exp(total / judged), rel=1e-4)
    assert (found["task"], found["metric"], found["value"]) == ("perplexity", "perplexity", perplexity(own))
    assert found["ratio"]["value"] == pytest.approx(perplexity(own) / perplexity(whole))
    assert found["ratio"]["low"] <= found["ratio"]["value"] <= found["ratio"]["high"]
    assert 0.8 < found["ratio"]["value"] < 1.25
    assert (found["agreement"], found["difference"]) == (None, None)
    assert not any("overlap" in note for note in found["warnings"])
    line = sentences(1, 20)[0]
    run = subprocess.run(
        [sys.executable, str(tmp_path / "out" / "run.py"), line],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    nats, count = run.stdout.rsplit("\t", 1)[1].split(" nats in ")
    wanted, tokens = guide(network, transformers.AutoTokenizer.from_pretrained(llama).encode(line), 24, 24)
    assert int(count.split()[0]) == tokens
    assert float(nats) == pytest.approx(wanted, rel=0.2)


def test_questions_are_answered_by_the_simulation(llama: Path, tmp_path: Path) -> None:
    quiz = tmp_path / "quiz.jsonl"
    rows = [
        {"question": a, "choices": [b, b[::-1], "ba ke"], "answer": 1} for a, b in zip(*[iter(sentences(96, 8))] * 2)
    ]
    quiz.write_text("\n".join(map(json.dumps, rows)))
    out = tmp_path / "out"
    found = seatrial.quantize(f"hf:{llama}", quiz, out=out, task="multiple-choice", stride=4, target="torch", **QUICK)
    own, whole = (pq.read_table(found["records"][f"{name}@torch"]) for name in ("w8a8", "float"))
    answers = [table["answer_by_length"].to_pylist() for table in (own, whole)]
    assert found["metric"] == "accuracy"
    assert found["value"] == np.mean(own["correct_by_length"].to_pylist())
    assert found["agreement"] == np.mean([a == b for a, b in zip(*answers)])
    assert (found["latency_ms"], found["agreement_simulated"]) == (None, 1.0)
    assert "--stride plays no part in multiple-choice" in found["warnings"]


def test_calibration_texts_are_sorted_and_draws_share_nothing(bert: Path, reviews: Path) -> None:
    subject = open_text_subject(f"hf:{bert}", reviews, Settings(calibration_samples=24), TextSettings(window=12))
    assert not set(subject.calibration.ids) & set(subject.evaluation.ids)
    batches = subject.calibration_batches()
    lengths = torch.cat([batch["attention_mask"].sum(1) for batch in batches]).tolist()
    assert lengths == sorted(len(sample.target.ids) for sample in subject.calibration)
    assert max(lengths) == subject.longest == 12
    again = open_text_subject(f"hf:{bert}", reviews, Settings(calibration_samples=24), TextSettings(window=12))
    assert again.calibration.digest == subject.calibration.digest
    other = open_text_subject(f"hf:{bert}", reviews, Settings(calibration_samples=24, seed=1), TextSettings(window=12))
    assert other.calibration.digest != subject.calibration.digest
    for sample in subject.evaluation:
        first, *_, last = sample.target.ids
        assert (first, last) == (1, 2)  # [CLS] and [SEP], cut off or not


def test_a_batch_holds_no_more_logits_than_fit(llama: Path, tmp_path: Path) -> None:
    text = tmp_path / "x.txt"
    text.write_text("\n".join(sentences(40, 20)))
    subject = open_text_subject(f"hf:{llama}", text, Settings(), TextSettings(window=16))
    assert subject.batch(64) == 64
    assert subject.batch(10**9) * 16 * SIZES["vocab_size"] <= 2**26


def test_a_perplexity_that_is_no_number_is_null(llama: Path, tmp_path: Path) -> None:
    text = tmp_path / "x.txt"
    text.write_text("\n".join(sentences(40, 20)))
    subject = open_text_subject(f"hf:{llama}", text, Settings(), TextSettings(window=16))
    samples = [subject.evaluation[at] for at in range(4)]
    shape = (*token_inputs(samples)["input_ids"].shape, SIZES["vocab_size"])
    sound, broken = (subject.task.answer(torch.full(shape, value), samples, ()) for value in (0.0, math.nan))
    figure = TextFigure.of("perplexity")
    rng = np.random.default_rng(0)
    assert figure.row(sound, rng)["value"] == pytest.approx(SIZES["vocab_size"])
    assert figure.row(broken, rng) == {"value": None, "low": None, "high": None}
    assert figure.against(sound, broken, rng) == {"ratio": None, "difference": None}


def test_sst2_is_read_for_a_classifier(shared: Path, bert: Path) -> None:
    options = Settings(calibration_samples=32, limit=50)
    plain = open_text_subject(f"hf:{bert}", shared / "text" / "sst2" / "dev.tsv", options, TextSettings())
    assert (len(plain.evaluation), len(plain.calibration)) == (50, 32)
    assert sum(plain.evaluation.labels) == 25  # drawn balanced


def test_stories_lose_little(shared: Path) -> None:
    folder = shared / "models" / "stories260k"
    options = Settings(calibration_samples=16, limit=20)
    stories = folder / "sampled_stories.jsonl"
    subject = open_text_subject(f"hf:{folder}", stories, options, TextSettings(window=128))
    graph, rules = subject.model.graph, PlacementRules("torch", "by-range", operator_outputs=False)
    quantized = quantize_graph(graph, subject.calibration_batches(), rules, options)
    whole, own = (
        text_records(GraphPredictor(one), subject.task, subject.evaluation) for one in (graph, quantized.graph)
    )
    assert len(own) == 20
    assert 2 < perplexity(whole) < 4  # its README: 3.01
    assert 1 < perplexity(own) / perplexity(whole) < 1.05


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"data": None}, "without texts; wanted a file of texts"),
        ({"data": "missing.tsv"}, "no file 'missing.tsv'"),
        ({"data": [("a", 1)]}, "data of type list"),
        ({"task": "perplexity"}, "wanted classification, which its head answers"),
        ({"task": "perplexities"}, "did you mean 'perplexity'"),
        ({"window": 25}, "--window 25; wanted at most 24"),
        ({"window": 1}, "--window 1"),
        ({"stride": 0}, "--stride 0"),
        ({"text_column": "words"}, "wanted a column 'words'"),
        ({"overrides": {"input_size": (32, 32)}}, "--input-size for the text model"),
        ({"method": "ohq"}, "--method ohq for the text model"),
        ({"method": "neares"}, "did you mean 'nearest'"),
    ],
)
def test_what_a_classifier_cannot_be_asked_is_named(
    bert: Path, reviews: Path, tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    given = {"data": reviews, **options}
    with pytest.raises(BadInput, match=said):
        seatrial.quantize(f"hf:{bert}", given.pop("data"), out=tmp_path, **given)
    assert not list(tmp_path.iterdir())


def test_texts_that_cannot_be_used_are_named(bert: Path, reviews: Path, tmp_path: Path) -> None:
    def opened(data: Path = reviews, **options: Any) -> None:
        open_text_subject(f"hf:{bert}", data, replace(Settings(), **options), TextSettings())

    empty = tmp_path / "empty.csv"
    empty.write_text('text,label\n" ",good\n"",bad\n')
    with pytest.raises(BadInput, match="whose texts tokenize to nothing") as said:
        opened(calibration=str(empty))
    assert "\n" not in str(said.value)
    some = tmp_path / "some.csv"
    some.write_text("text,label\n" + "ba be,good\n" * 9 + " ,bad\n")
    with pytest.raises(BadInput, match=r"1 of 10 texts cannot be used, first '000009'.*--max-bad"):
        opened(some)
    opened(some, max_bad=0.1)
    with pytest.raises(BadInput, match="calibration data equal to --data"):
        opened(calibration=str(reviews))
    few = tmp_path / "few.csv"
    few.write_text("text,label\nba,good\n")
    with pytest.raises(BadInput, match="enough to divide some off"):
        opened(few)
    wrong = tmp_path / "wrong.csv"
    wrong.write_text("text,label\n" + "ba be,2\n" * 9)
    with pytest.raises(BadInput, match="labels from 0 to 1"):
        opened(wrong)


def test_ids_beyond_the_vocabulary_are_named(llama: Path, tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text('{"ids": [1, 5, 6]}\n' * 8 + '{"ids": [1, 500]}')
    with pytest.raises(BadInput, match=f"the token id 500 for a vocabulary of {SIZES['vocab_size']}"):
        open_text_subject(f"hf:{llama}", file, Settings(), TextSettings())


def test_other_models_are_refused(reviews: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="a masked language model; wanted a sequence classifier"):
        seatrial.quantize(f"hf:{saved(tmp_path, 'masked')}", reviews)
    with pytest.raises(BadInput, match="an option of text models for 'digits-cnn'"):
        seatrial.quantize("digits-cnn", task="classification")
    with pytest.raises(BadInput, match="has no config"):
        seatrial.quantize(f"hf:{reviews.parent}", reviews)
