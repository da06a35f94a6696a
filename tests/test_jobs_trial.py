"""The whole road on small networks: trial, resume, quantize, evaluate, profile, compare, and the deployed folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_network import network

import seatrial
from seatrial.bench.store import Store
from seatrial.data.digits import digits_split
from seatrial.deploy.machine import weight_bits_cap
from seatrial.errors import BadInput
from seatrial.jobs.comparing import compare_runs, remake_report
from seatrial.jobs.result import TrialResult
from seatrial.jobs.trial import limit_holds

NOISE = ("fgsm:linf:2/255", "square:linf:8/255:20", "gaussian_noise:3", "decoder:pyav", "resize:opencv-area")
SMALL = {"limit": 40, "noise_limit": 12, "calibration_samples": 24, "noise": NOISE, "threads": 1, "batch": 8}
SIZE = {"input_size": (32, 32), "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
KEYS = {"model", "data", "calibration", "machine", "variants", "warnings", "store", "report"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrialResult:
    folder = tmp_path_factory.mktemp("trial") / "out"
    return seatrial.trial(network(), out=folder, target="onnxruntime", overrides=SIZE, **SMALL)


def files(folder: Path) -> dict[str, tuple[bytes, int]]:
    cells = sorted((folder / "store" / "cells").glob("*.parquet"))
    return {cell.name: (cell.read_bytes(), cell.stat().st_mtime_ns) for cell in cells}


def test_the_json_has_the_documented_keys(run: TrialResult) -> None:
    assert set(run.data) >= KEYS
    names = [(v["name"], v["target"]) for v in run.data["variants"]]
    assert names == [("float", "torch"), ("float", "onnxruntime"), ("w8a8", "torch"), ("w8a8", "onnxruntime")]
    deployed = run.data["variants"][-1]
    assert deployed["bits"] == "w8a8"
    assert deployed["size_bytes"] > 0
    assert deployed["latency_ms"]["batch"] == 1
    assert 0.9 <= deployed["agreement_simulated"] <= 1.0
    assert len(deployed["noise"]) == len(NOISE)
    json.dumps(run.data, allow_nan=False)
    assert Path(run.data["report"]).read_text(encoding="utf-8").startswith("<!doctype html>")


def test_noise_cells_say_how_they_were_reached(run: TrialResult) -> None:
    by_name = {cell["name"]: cell for cell in run.data["variants"][-1]["noise"]}
    assert by_name["fgsm"]["access"] == "transfer"
    assert by_name["square"]["access"] == "score"
    assert by_name["resize"]["status"] == "no-noise" or by_name["resize"]["status"] == "not-applicable"
    assert by_name["gaussian_noise"]["n"] == 12
    white = {cell["name"]: cell for cell in run.data["variants"][0]["noise"]}
    assert white["fgsm"]["access"] == "white-box"


def test_an_integer_model_is_stored_as_integers(run: TrialResult) -> None:
    sizes = {(v["name"], v["target"]): v["size_bytes"] for v in run.data["variants"]}
    assert sizes["w8a8", "onnxruntime"] > 0
    import onnx

    model = onnx.load(str(run.folder / "deploy" / "model.onnx"))
    weights = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 4]
    assert len(weights) == 2


def test_the_same_call_resumes_and_changes_nothing(run: TrialResult) -> None:
    before = files(run.folder)
    again = seatrial.trial(network(), out=run.folder, target="onnxruntime", overrides=SIZE, **SMALL)
    assert files(run.folder) == before
    assert again.data == run.data, "timings come from the store"


def test_a_trial_leaves_the_module_as_it_was(tmp_path: Path) -> None:
    module = network().train()
    module[0].weight.grad = torch.ones_like(module[0].weight)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    seatrial.trial(
        module, out=tmp_path / "out", target="onnxruntime", overrides=SIZE, **{**SMALL, "noise": ("fgsm:linf:2/255",)}
    )
    assert module.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert torch.equal(module[0].weight.grad, torch.ones_like(module[0].weight))
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_python_data_and_a_metric_of_ones_own(tmp_path: Path) -> None:
    held_out = digits_split()[1]
    from seatrial.data.load import default_pipeline, load_input

    pipeline = default_pipeline((32, 32))
    pairs = [(load_input(pipeline, held_out[i]), held_out.labels[i]) for i in range(48)]

    def spread(records) -> float:
        return float(records["answer"].nunique())

    found = seatrial.trial(
        network(),
        pairs,
        out=tmp_path / "out",
        metric=spread,
        target="onnxruntime",
        overrides=SIZE,
        **{**SMALL, "noise": ("decoder:pyav", "brightness:2")},
    )
    variant = found.data["variants"][0]
    assert variant["metric"] == "spread"
    assert 1 <= variant["value"] <= 10
    statuses = {cell["name"]: cell["status"] for cell in variant["noise"]}
    assert statuses == {"decoder": "not-applicable", "brightness": "done"}


def test_limits(run: TrialResult) -> None:
    assert limit_holds(run, "float.size_bytes > 0")
    assert not limit_holds(run, "w8a8.top1 < float@torch.top1 - 1")
    with pytest.raises(BadInput, match="top1"):
        limit_holds(run, "w8a8.topp1 < 1")


def test_the_deployed_folder_runs_without_seatrial(run: TrialResult, tmp_path: Path) -> None:
    sample = digits_split()[1][0]
    picture = tmp_path / "digit.jpg"
    picture.write_bytes(sample.encoded or b"")
    done = subprocess.run(
        [sys.executable, "-I", str(run.folder / "deploy" / "run.py"), str(picture)],
        capture_output=True,
        text=True,
        check=True,
    )
    store = Store(run.folder / "store", create=False)
    rows = store.query(
        f"SELECT answer FROM records WHERE sample = '{sample.id}' AND variant = 'w8a8' "
        "AND target = 'onnxruntime' AND name IS NULL"
    )
    assert "seatrial" not in done.stdout
    if rows.num_rows:
        assert done.stdout.split()[-1] == str(rows["answer"][0].as_py())


def test_the_exported_onnx_goes_through_as_an_artefact(run: TrialResult, tmp_path: Path) -> None:
    found = seatrial.evaluate(
        run.folder / "deploy" / "model.onnx",
        target="onnxruntime",
        out=tmp_path / "e",
        noise=("fgsm:linf:2/255", "square:linf:8/255:20"),
        **{key: SMALL[key] for key in ("limit", "noise_limit", "threads", "batch")},
    )
    same = run.data["variants"][-1]
    assert found["top1"] == same["top1"]
    statuses = {cell["name"]: cell["status"] for cell in found["noise"]}
    assert statuses == {"fgsm": "not-applicable", "square": "done"}


def test_quantize_and_profile(tmp_path: Path) -> None:
    found = seatrial.quantize(
        network(), out=tmp_path / "q", target="onnxruntime", overrides=SIZE, limit=40, threads=1, keep=("7/*",)
    )
    assert not any(site["site"].startswith("7/") for site in found["sites"])
    assert all(Path(file).exists() for file in found["files"])
    assert found["sites"]
    assert all(site["bits"] in (8, weight_bits_cap()) for site in found["sites"])
    told = seatrial.profile(tmp_path / "q" / "model.onnx", target="onnxruntime", threads=1, runs=2)
    assert told["operators"]
    assert abs(sum(row["share"] for row in told["operators"]) - 1) < 1e-6


def test_two_runs_are_compared_sample_by_sample(run: TrialResult, tmp_path: Path) -> None:
    data = compare_runs(run.folder, run.folder, tmp_path / "c.html")
    assert (tmp_path / "c.html").stat().st_size > 1000
    assert data
    assert remake_report(run.folder, tmp_path / "r.html").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"bits": "w1a1"}, "2 to 8, or 16"),
        ({"method": "nearrest"}, "did you mean 'nearest'"),
        ({"target": "openvin"}, "did you mean 'openvino'"),
        ({"noise": "pgdd:linf:2/255"}, "did you mean 'pgd'"),
        ({"noise": ("gaussian_noise:9",)}, "severity"),
        ({"keep": ("nothing.*",)}, "glob that matches"),
    ],
)
def test_bad_choices_are_explained(options: dict, said: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=said):
        seatrial.trial(network(), out=tmp_path / "o", overrides=SIZE, **{**SMALL, "target": "onnxruntime", **options})
