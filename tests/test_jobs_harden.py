"""`seatrial harden`: training against noise and adapting at test time, judged before and after."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_network import network

from seatrial.cli.main import main
from seatrial.core.chance import generator
from seatrial.core.graph import Graph, capture
from seatrial.errors import BadInput
from seatrial.jobs.harden import PgdOf, harden
from seatrial.jobs.trainee import Lesson
from seatrial.models.opened import Model, open_model
from seatrial.train.trainable import trainable

SIZE = {"input_size": (28, 28), "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "resize": 28}
SMALL: dict[str, Any] = {"limit": 30, "train_limit": 64, "threads": 1, "overrides": SIZE, "batch": 32}
NOISE = "gaussian_noise:3,pgd:linf:2/255,resize:opencv-area"


@pytest.fixture(scope="module", autouse=True)
def _untimed() -> Iterator[None]:
    """Leave latencies out: the stopwatch has tests of its own and takes most of a run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("seatrial.jobs.trainee.time_variants", lambda *_: {})
        yield


@pytest.mark.parametrize("by", ["mix", "augmix", "adversarial"])
def test_a_hardened_network_is_judged_beside_the_float_one(by: str, tmp_path: Path) -> None:
    lesson = Lesson(epochs=1, rate=0.05, batch=32)
    found = harden(network(), by=by, out=tmp_path, lesson=lesson, noise=NOISE, **SMALL)
    assert found == json.loads((tmp_path / "harden.json").read_text())
    assert [row["name"] for row in found["variants"]] == ["float", by]
    for row in found["variants"]:
        assert {cell["name"]: cell["status"] for cell in row["noise"]} == {
            "gaussian_noise": "done",
            "pgd": "done",
            "resize": "done",
        }
    # The weights fit the eager network and compute what was judged.
    state = load_file(tmp_path / "weights.safetensors")
    before = network().state_dict()
    # The capture leaves out what evaluation does not read.
    assert set(before) - set(state) == {"1.num_batches_tracked"}
    assert any(not torch.equal(before[key], state[key]) for key in state)
    options = {**SIZE, "weights": str(tmp_path / "weights.safetensors")}
    opened = open_model(network(), **options)
    stored = open_model(str(tmp_path / "models" / f"{by}-torch.pt2"), mean=(0.0,) * 3, std=(1.0,) * 3)
    assert isinstance(opened, Model)
    assert isinstance(stored, Model)
    pictures = torch.rand(4, 3, 28, 28)
    assert torch.allclose(opened.graph.module(pictures), stored.graph.module(pictures), atol=1e-5)


def test_tent_adapts_at_test_time_and_trains_nothing(tmp_path: Path) -> None:
    found = harden(network(), by="tent", out=tmp_path, noise=NOISE, **SMALL)
    assert found["training"] is None
    assert found["files"] == []
    assert found["variants"][1]["name"] == "tent"
    access = {cell["name"]: cell["access"] for cell in found["variants"][1]["noise"]}
    assert access["pgd"] == "transfer"
    again = harden(network(), by="tent", out=tmp_path, noise=NOISE, **SMALL)
    assert again["variants"] == found["variants"]


def test_the_attack_of_adversarial_training_finds_worse_pictures_in_its_ball() -> None:
    graph: Graph = capture(network(), torch.rand(2, 3, 28, 28))
    module = trainable(graph)
    pictures = torch.rand(6, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    labels = module(pictures).argmax(1)
    attack = PgdOf(graph.inputs, "8/255")
    found = attack(module, pictures, labels, generator(0))
    assert 0 < float((found - pictures).abs().max()) <= 8 / 255 + 1e-7
    entropy = torch.nn.functional.cross_entropy
    assert entropy(module(found), labels) > entropy(module(pictures), labels)
    assert torch.equal(attack(module, pictures, labels, generator(0)), found)
    assert not torch.equal(attack(module, pictures, labels, generator(1)), found)
    assert all(value.grad is None for value in module.parameters())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--by", "augmx"], "did you mean 'augmix'"),
        (["--by", "adversarial", "--epsilon", "3"], "epsilon"),
        (["--by", "mix", "--norms", "batch"], "frozen"),
    ],
)
def test_bad_options_end_with_2_and_one_line(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    common = ["seatrial", "harden", "tiny_network:network", "--input-size", "28", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", [*common, *arguments, "--train-limit", "20", "--limit", "20"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert said in told
    assert len(told.strip().splitlines()) == 1


def test_mix_training_needs_pictures_that_decode_differently(tmp_path: Path) -> None:
    arrays = [(np.full((3, 28, 28), value / 10, dtype=np.float32), value % 2) for value in range(10)]
    with pytest.raises(BadInput, match="equal pictures"):
        harden(network(), arrays, by="mix", out=tmp_path, overrides=SIZE, threads=1)
