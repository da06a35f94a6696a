"""Labeled texts whatever their file, and windows in which each token is judged once."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from seatrial.bench.texts import text_records
from seatrial.core.language import LanguageModelling
from seatrial.core.predictor import Gift, Inputs, Predictor
from seatrial.core.truth import Tokens
from seatrial.data.labeled_texts import open_labeled_texts
from seatrial.data.text_set import open_texts
from seatrial.data.text_windows import open_windows, windows
from seatrial.errors import BadInput

CLS, SEP, VOCABULARY = 1, 2, 29
ROWS = [("a fine film", "1"), ('it said "no', "0"), ("", "1"), ("dull, and long , too", "0")]


def words(text: str) -> list[int]:
    return [3 + sum(map(ord, word)) % (VOCABULARY - 3) for word in text.split()]


def written(folder: Path, ending: str, heading: tuple[str, str] | None = ("text_a", "label")) -> Path:
    file = folder / f"rows.{ending}"
    names = [heading] if heading else []
    if ending == "jsonl":
        assert heading is not None
        file.write_text("\n".join(json.dumps(dict(zip(heading, row))) for row in ROWS))
    elif ending == "csv":
        with open(file, "w", newline="") as stream:
            csv.writer(stream).writerows([*names, *ROWS])
    else:
        file.write_text("\r\n".join("\t".join(row) for row in [*names, *ROWS]) + "\n")
    return file


@pytest.mark.parametrize("ending", ["tsv", "csv", "jsonl"])
@pytest.mark.parametrize("heading", [("text_a", "label"), ("Sentence", "target"), ("said", "mark")])
def test_one_table_in_three_files(tmp_path: Path, ending: str, heading: tuple[str, str]) -> None:
    file = written(tmp_path, ending, heading)
    named = dict(zip(("text_column", "label_column"), heading)) if heading[0] != "text_a" else {}
    found = open_labeled_texts(file, words, length=5, front=[CLS], back=[SEP], n_classes=2, **named)
    assert found.labels == (1, 0, 0)
    assert found.ids == ("000000", "000001", "000003")
    assert [sample.target for sample in found] == [Tokens((CLS, *words(text)[:3], SEP)) for text, _ in ROWS if text]
    ((name, why),) = found.bad
    assert name == "000002"
    assert "makes nothing of the text" in why
    assert found.notes == ("1 texts were cut off after 5 tokens",)
    part = found.subset([0, 2])
    assert (part.labels, part.digest != found.digest) == ((1, 0), True)


@pytest.mark.parametrize("ending", ["tsv", "csv"])
def test_columns_by_number_where_there_is_no_heading(tmp_path: Path, ending: str) -> None:
    file = written(tmp_path, ending, None)
    found = open_labeled_texts(file, words, length=9, text_column="1", label_column="2")
    assert (found.labels, len(found.bad)) == ((1, 0, 0), 1)
    bare = open_labeled_texts(file, words, length=9, text_column="1", labeled=False)
    assert [sample.target for sample in bare] == [sample.target for sample in found]
    assert bare.labels == (0, 0, 0)


def test_labels_that_are_names_are_the_models(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    rows = [{"review": word, "class": name} for word, name in (("a", "good"), ("b", "Bad"), ("c", "good"))]
    file.write_text("\n".join(map(json.dumps, rows)))
    found = open_labeled_texts(file, words, length=9, class_names=("bad", "good"), n_classes=2)
    assert (found.labels, found.class_names, found.label_rule) == ((1, 0, 1), ("bad", "good"), "class names")
    file.write_text("\n".join(json.dumps({"text": "a", "label": number}) for number in (0, 1, 0)))
    assert open_labeled_texts(file, words, length=9, class_names=("bad", "good")).labels == (0, 1, 0)


@pytest.mark.parametrize(
    ("name", "content", "options", "said"),
    [
        ("x.txt", "a\n", {}, r"wanted a .tsv, .csv or .jsonl file"),
        ("x.tsv", "", {}, "the columns ''; wanted one of the columns text, text_a"),
        ("x.tsv", "text\tlabel\n", {}, "without a row"),
        ("x.tsv", "words\tlabel\na\t1\n", {}, "give --text-column a name of those, or a number"),
        ("x.tsv", "text\tmark\na\t1\n", {}, "wanted one of the columns label, labels, class, target"),
        ("x.csv", "text,label\na,1\n", {"text_column": "words"}, "wanted a column 'words'"),
        ("x.csv", "text,label\na,1,2\n", {}, "x.csv, row 2, with 3 cells; wanted 2"),
        ("x.csv", "a,1\nb\n", {"text_column": "1", "label_column": "2"}, "row 2, with 1 cells; wanted at least 2"),
        ("x.csv", "a,1\n", {"text_column": "1"}, "no --label-column; wanted both columns by number"),
        ("x.csv", "a,1\n", {"text_column": "0", "label_column": "2"}, "--text-column 0"),
        ("x.csv", "text,label\na,\n", {}, "x.csv, row 2, without a label"),
        ("x.csv", "text,label\na,2\n", {"n_classes": 2}, "label 2 of '2'"),
        ("x.csv", "text,label\n ,1\n", {}, "whose texts tokenize to nothing"),
        ("x.jsonl", '{"text": "a"}', {}, "row 1, with the keys 'text'; wanted one of the keys label"),
        ("x.jsonl", '{"text": 3, "label": 1}', {}, "a text that is a int"),
        ("x.jsonl", '{"text": "a", "label": 0.5}', {}, "the label 0.5"),
        ("x.jsonl", '{"text": "a", "label": true}', {}, "the label True"),
        ("x.csv", "text,label\na,1\n", {"length": 2}, "wanted at least 3, special tokens included"),
    ],
)
def test_what_is_no_table_of_texts_is_named(tmp_path: Path, name: str, content: str, options: dict, said: str) -> None:
    file = tmp_path / name
    file.write_text(content)
    with pytest.raises(BadInput, match=said):
        open_labeled_texts(file, words, **{"length": 9, "front": [CLS], "back": [SEP], **options})


class Remembering(Predictor):
    """A causal network whose logits hang on all that it was shown before."""

    gives: frozenset[Gift] = frozenset({"logits"})
    table = torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(0))

    def __call__(self, inputs: Inputs) -> Tensor:
        assert not isinstance(inputs, Tensor)
        return self.table[inputs["input_ids"]].cumsum(1)


@pytest.mark.parametrize(("window", "stride"), [(7, 7), (7, 3), (7, 1), (64, 10), (2, 1), (5, 4)])
def test_perplexity_over_windows_is_that_of_a_direct_loop(tmp_path: Path, window: int, stride: int) -> None:
    rng = np.random.default_rng(0)
    texts = [rng.integers(3, VOCABULARY, n).tolist() for n in (40, 23, 2)]
    file = tmp_path / "x.jsonl"
    file.write_text("\n".join(json.dumps({"ids": ids}) for ids in texts))
    data = open_windows(file, words, window=window, stride=stride, begin=CLS)
    records = text_records(Remembering(), LanguageModelling(), data, batch=4)
    losses = []
    for ids in texts:
        whole = torch.tensor([CLS, *ids])
        # transformers' guide, with its count of the judged tokens put right.
        before = 0
        for start in range(0, len(whole), stride):
            end = min(start + window, len(whole))
            piece = whole[start:end]
            targets = piece.clone()
            targets[: len(piece) - (end - before)] = -100
            logits = Remembering()({"input_ids": piece[None]})[0]
            each = F.cross_entropy(logits[:-1].double(), targets[1:], ignore_index=-100, reduction="none")
            losses += each[targets[1:] != -100].tolist()
            before = end
            if end == len(whole):
                break
    assert sum(records["tokens"].to_pylist()) == len(losses)
    assert sum(records["nll"].to_pylist()) == pytest.approx(sum(losses), rel=1e-6)


@given(st.integers(1, 60), st.integers(2, 20), st.data())
def test_each_token_is_judged_once(length: int, window: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, window))
    ids = tuple(range(length))  # each id says where it stands
    found = windows(ids, window=window, stride=stride)
    judged = [at for piece in found for at in piece.ids[len(piece.ids) - (piece.judged or len(piece.ids) - 1) :]]
    unjudged = set(ids) - set(judged)
    assert len(judged) == len(set(judged))
    assert unjudged == ({0} if stride < window else set(range(0, length, stride)))
    assert all(len(piece.ids) <= window for piece in found)


def test_a_running_text_begins_once(tmp_path: Path) -> None:
    file = tmp_path / "x.txt"
    file.write_text("a b c d\ne f g")
    found = open_windows(file, words, window=4, begin=CLS)
    assert [sample.target.ids for sample in found] == [(CLS, *words("a b c")), tuple(words("d e f g"))]
    assert found.label_rule == "windows of 4 tokens, 4 apart"
    other = open_windows(file, words, window=4, stride=2, begin=CLS)
    assert [sample.target.judged for sample in other] == [None, 2, 2]
    assert other.subset([0, 1]).digest != found.digest
    assert [row.ids for row in windows((CLS,), window=4, stride=2)] == []


def test_rows_of_which_nothing_can_be_judged_are_listed(tmp_path: Path) -> None:
    file = tmp_path / "x.tsv"
    file.write_text("id\ttext\n1\ta b\n2\t \n3\tc d e\n")
    found = open_windows(file, words, window=8)
    assert len(found) == 2
    assert [name for name, _ in found.bad] == ["000001"]
    file.write_text("text\n \n")
    with pytest.raises(BadInput, match="without a row"):
        open_windows(file, words, window=8)
    file.write_text("id\ttext\n1\t \n")
    with pytest.raises(BadInput, match="tokenize to nothing"):
        open_windows(file, words, window=8, begin=CLS)


@pytest.mark.parametrize(("window", "stride"), [(1, 1), (4, 5), (4, 0)])
def test_strides_that_leave_tokens_out_are_refused(window: int, stride: int) -> None:
    with pytest.raises(BadInput, match="a stride from 1 to the window"):
        windows((1, 2, 3), window=window, stride=stride)


def test_a_running_text_has_no_columns(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("a b")
    with pytest.raises(BadInput, match=r"--text-column text .*leave it out"):
        open_windows(tmp_path / "x.txt", words, window=4, text_column="text")


def test_texts_of_before_keep_their_digest(tmp_path: Path) -> None:
    assert repr(Tokens((1, 2))) == repr(Tokens((1, 2), 1)) == "Tokens(ids=(1, 2))"  # what digests are made of
    (tmp_path / "x.txt").write_text("a b c d e f")
    side_by_side = open_windows(tmp_path / "x.txt", words, window=3)
    assert side_by_side.digest == open_texts(tmp_path / "x.txt", words, length=3).digest


@pytest.mark.parametrize(
    ("file", "columns", "count", "positive"),
    [("sst2/dev.tsv", {}, 872, 444), ("cola/in_domain_dev.tsv", {"text_column": "4", "label_column": "2"}, 527, 365)],
)
def test_glue_as_it_is_published(shared: Path, file: str, columns: dict, count: int, positive: int) -> None:
    found = open_labeled_texts(shared / "text" / file, str.encode, length=512, n_classes=2, **columns)
    assert (len(found), sum(found.labels), found.bad) == (count, positive, ())
