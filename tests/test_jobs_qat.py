"""`seatrial qat`: from a float network to files that run, and the road of a killed training."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_network import network
from torch import nn

from seatrial.cli.main import main
from seatrial.core.recipe import Affine, Recipe
from seatrial.data.digits import digits_split
from seatrial.data.files import open_data
from seatrial.errors import BadInput
from seatrial.jobs.qat import qat
from seatrial.jobs.settings import Settings
from seatrial.jobs.trainee import Lesson, open_trainee
from seatrial.models.opened import open_model

SIZE = {"input_size": (32, 32), "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
SMALL: dict[str, Any] = {"limit": 60, "train_limit": 160, "threads": 1, "calibration_samples": 32, "overrides": SIZE}


@pytest.fixture(scope="module", autouse=True)
def _untimed() -> Iterator[None]:
    """Leave latencies out: the stopwatch has tests of its own and takes most of a run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("seatrial.jobs.trainee.time_variants", lambda *_: {})
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("qat") / "out"
    lesson = Lesson(epochs=2, rate=0.1, batch=32)
    return qat(network(), out=folder, bits="w4a4", lesson=lesson, target="onnxruntime", **SMALL), folder


def test_the_files_answer_as_the_trained_network(run: tuple[dict[str, Any], Path]) -> None:
    result, folder = run
    assert result == json.loads((folder / "qat.json").read_text())
    assert result["bits"] == "w4a4"
    assert result["placement"] == "weighted"
    assert result["agreement_simulated"] >= 0.95
    assert [(row["name"], row["target"]) for row in result["variants"]] == [
        ("float", "torch"),
        ("w4a4", "torch"),
        ("w4a4", "onnxruntime"),
    ]
    assert all(Path(file).is_file() for file in (*result["files"], result["checkpoint"]))
    assert {Path(file).suffix for file in result["files"]} >= {".onnx", ".pt2", ".py"}
    recipe = Recipe.load(folder / "models" / "recipe-w4a4-onnxruntime")
    grids = {str(edit.site): edit.grid for edit in recipe.rounds}
    bits = {site: grid.bits for site, grid in grids.items() if isinstance(grid, Affine) and site.endswith("weight")}
    assert sorted(bits.values()) == [4, 8, 8]
    # The stored network has its weights on the grids of the recipe.
    seen = open_model(str(folder / "models" / "w4a4-onnxruntime-torch.pt2"))
    assert any("qdq" in str(node.target) for node in seen.graph.nodes())  # pyright: ignore[reportAttributeAccessIssue]


def test_the_same_call_takes_up_the_checkpoint(run: tuple[dict[str, Any], Path]) -> None:
    result, folder = run
    lesson = Lesson(epochs=2, rate=0.1, batch=32)
    told: list[str] = []
    again = qat(
        network(), out=folder, bits="w4a4", lesson=lesson, target="onnxruntime",
        progress=lambda done, total, text: told.append(text), **SMALL,
    )  # fmt: skip
    assert "training" not in told
    assert again["value"] == result["value"]
    assert again["checkpoint"] == result["checkpoint"]


def test_a_killed_call_goes_on_to_the_same_network(run: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    lesson = Lesson(epochs=2, rate=0.1, batch=32)

    def stop(done: int, total: int, text: str) -> None:
        if text == "training" and done == 1:
            raise KeyboardInterrupt

    options = {"out": tmp_path, "bits": "w4a4", "lesson": lesson, "target": "onnxruntime", **SMALL}
    with pytest.raises(KeyboardInterrupt):
        qat(network(), progress=stop, **options)
    second = qat(network(), **options)
    whole, resumed = (torch.load(found["checkpoint"], weights_only=True) for found in (run[0], second))
    assert whole["epoch"] == resumed["epoch"] == 2
    assert all(torch.equal(value, resumed["module"][key]) for key, value in whole["module"].items())


def test_a_captured_file_trains_too(tmp_path: Path) -> None:
    torch.export.save(
        torch.export.export(network(), (torch.rand(2, 3, 32, 32),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)),
        tmp_path / "net.pt2",
    )
    lesson = Lesson(epochs=1, batch=32, norms="frozen")
    options = {**SMALL, "overrides": {"mean": SIZE["mean"], "std": SIZE["std"]}}
    found = qat(str(tmp_path / "net.pt2"), out=tmp_path / "out", bits="w8a8", lesson=lesson, target="torch", **options)
    assert found["placement"] == "target"
    assert found["value"] == found["simulated_value"]


def test_data_are_divided_and_never_shared() -> None:
    train, test = digits_split()
    settings = Settings(limit=20)

    def given(indices: Iterable[int]) -> list[tuple[bytes | None, int]]:
        return [(sample.encoded, sample.label) for sample in test.subset(indices)]

    pictures = open_data(given(range(100)))
    divided = open_trainee(network(), pictures, settings, train_limit=50, overrides=SIZE)
    assert len(divided.subject.evaluation) == 20
    assert len(divided.samples) == 50
    assert not set(divided.samples.ids) & set(divided.subject.evaluation.ids)
    named = open_trainee(network(), pictures, settings, train=train.subset(range(30)), overrides=SIZE)
    assert len(named.samples) == 30
    assert named.labels.tolist() == list(named.samples.labels)
    with pytest.raises(BadInput, match="equal to --data"):
        open_trainee(network(), pictures, settings, train=pictures, overrides=SIZE)
    overlapping = open_trainee(network(), pictures, settings, train=given(range(90, 120)), overrides=SIZE)
    assert len(overlapping.samples) == 20
    assert "10 of its samples" in overlapping.note
    with pytest.raises(BadInput, match="at least 5"):
        open_trainee(network(), given([0, 1, 2, 50]), settings, overrides=SIZE)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--method", "lqs"], "did you mean 'lsq'"),
        (["--bits", "1"], "2 to 8"),
        (["--ends", "4"], "8, float, same"),
        (["--epochs", "0"], "at least 1"),
        (["--augment", "flip"], "shift-flip"),
        (["--placement", "all"], "weighted"),
        (["--rate", "-1"], "above 0"),
    ],
)
def test_bad_options_end_with_2_and_one_line(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    common = ["seatrial", "qat", "tiny_network:network", "--input-size", "32", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", [*common, *arguments, "--train-limit", "20", "--limit", "20"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert said in told
    assert len(told.strip().splitlines()) == 1


def test_a_deployed_file_cannot_be_trained(run: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="float original"):
        qat(str(run[1] / "model.onnx"), out=tmp_path, limit=20, threads=1)


def test_a_loss_that_is_not_finite_is_said(tmp_path: Path) -> None:
    class Diverging(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x)

    with pytest.raises(BadInput, match="lower the learning rate"):
        qat(Diverging(), out=tmp_path, bits="w4a4", lesson=Lesson(epochs=2, rate=1e12), target="torch", **SMALL)
