"""`seatrial robustness` on deployed files: every cell of a profile has a figure or says why not; what is refused."""

from __future__ import annotations

import io
import json
import shutil
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_network import network
from torch import nn

from seatrial.bench.store import Store
from seatrial.cli.main import main
from seatrial.deploy.onnx_export import export_onnx
from seatrial.errors import BadInput
from seatrial.jobs.robustness import robustness
from seatrial.models.opened import Model, open_model

SIZE: dict[str, Any] = {"input_size": (32, 32), "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "resize": 32}
FED: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "resize": 32}  # the file normalizes by itself
RUNTIMES = ("onnxruntime", "openvino")
CLEAN: dict[str, Any] = {"attacks": "none", "corruptions": "none"}
CELL = {
    *("model", "variant", "target", "family", "name", "option", "norm", "severity", "access", "metric", "value"),
    *("clean", "low", "high", "n", "status", "reason", "difference", "difference_low", "difference_high", "churn"),
    *("kl", "picture_difference", "epsilon", "AR", "robust_accuracy", "zero_gradient", "queries"),
}
SUMMARY = {
    *("model", "variant", "target", "clean", "AR", "WCAR", "WCAR_attacks", "NR", "mCE", "relative_mCE", "SR_mean"),
    *("SR_std", "SR_ddof", "SR_cells", "system", "chain", "combined_drop", "intervals"),
}
RESULT = {"profile", "models", "data", "machine", "seed", "cells", "summary", "masking", "warnings", "store", "report"}


def picture(index: int) -> bytes:
    """A JPEG file of 56x44 pixels: rough areas of chance, so that decoders and filters differ on it."""
    levels = np.random.default_rng(index).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    written = io.BytesIO()
    Image.fromarray(levels).resize((56, 44), Image.Resampling.BICUBIC).save(written, "JPEG", quality=90)
    return written.getvalue()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    for index in range(24):
        file = root / str(index % 10) / f"{index:02}.jpg"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(picture(index))
    return root


def exported(module: nn.Module, file: Path) -> Path:
    opened = open_model(module, **SIZE)
    assert isinstance(opened, Model)
    file.parent.mkdir(exist_ok=True)
    return export_onnx(opened.graph, file)


@pytest.fixture(scope="module")
def onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(network(), tmp_path_factory.mktemp("net") / "tiny.onnx")


def checked(found: dict[str, Any], runtimes: tuple[str, ...]) -> dict[str, list[dict[str, Any]]]:
    """Hold a result against its documentation; return the cells by name of noise."""
    assert set(found) == RESULT
    assert json.loads(Path(found["store"]).parent.joinpath("robustness.json").read_text()) == found
    assert Path(found["report"]).read_text(encoding="utf-8").startswith("<!doctype html>")
    assert {cell["target"] for cell in found["cells"]} == set(runtimes)
    by_name: dict[str, list[dict[str, Any]]] = {}
    for cell in found["cells"]:
        assert set(cell) == CELL
        assert cell["variant"] == "deployed"
        assert cell["status"] in ("done", "no-noise", "not-applicable"), cell["reason"]
        done = cell["status"] == "done"
        assert (cell["reason"] is None) == done
        assert (cell["n"] > 0) == done
        figures = ["value", "low", "high"]
        figures += ["difference", "churn", "kl", "picture_difference"] if cell["family"] == "system" else []
        assert all((cell[name] is not None) == done for name in figures), cell
        by_name.setdefault(cell["name"], []).append(cell)
    assert [row["target"] for row in found["summary"]] == list(runtimes)
    for row in found["summary"]:
        assert set(row) == SUMMARY
        assert row["intervals"]["clean"]["low"] <= row["clean"] <= row["intervals"]["clean"]["high"]
    return by_name


def statuses(cells: list[dict[str, Any]]) -> dict[str, str]:
    return {cell["option"]: cell["status"] for cell in cells}


def test_the_quick_profile_attacks_a_file_by_its_scores(onnx: Path, pictures: Path, tmp_path: Path) -> None:
    found = robustness(onnx, pictures, profile="quick", out=tmp_path, threads=1, overrides=FED)
    cells = checked(found, RUNTIMES)
    assert found["data"]["n"] == found["data"]["n_attacks"] == 24
    assert {cell["status"] for cell in cells["square"]} == {"done"}
    assert all(1 <= cell["queries"] <= 300 for cell in cells["square"])
    for cell in (*cells["fgsm"], *cells["pgd"]):
        assert cell["status"] == "not-applicable"
        assert ("square, which needs scores" if cell["option"] is None else "no float parent") in cell["reason"]
    assert all(cell["status"] == "done" for cell in found["cells"] if cell["family"] == "corruption")
    assert statuses(cells["decoder"]) | {"opencv": ""} == {"pillow": "no-noise", "pyav": "done", "opencv": ""}
    assert set(statuses(cells["resize"]).values()) == {"done"}
    for row in found["summary"]:
        assert row["WCAR_attacks"] == {"middle": ["square:linf"]}
        assert row["AR"].keys() == {"square:linf"}


def test_the_sysnoise_profile_has_a_figure_or_a_reason_in_every_cell(
    onnx: Path, pictures: Path, tmp_path: Path
) -> None:
    found = robustness(onnx, pictures, profile="sysnoise", out=tmp_path, threads=1, overrides=FED)
    cells = checked(found, RUNTIMES)
    assert found["data"]["n_attacks"] == 0
    assert {cell["family"] for cell in found["cells"]} == {"system"}
    resized = statuses(cells["resize"])
    assert resized.pop("pillow-bilinear") == "no-noise"
    assert set(resized.values()) == {"done"}
    assert set(statuses(cells["color"]).values()) == {"done"}
    for name in ("ceil_mode", "upsample"):
        assert all("is a deployed file: its operators are as they are" in cell["reason"] for cell in cells[name])
    arithmetic = {(cell["target"], cell["option"]): cell["reason"] for cell in cells["precision"]}
    assert all(arithmetic.values())
    assert "is a deployed file: its arithmetic is as it is" in arithmetic["onnxruntime", "int8"]
    for row in found["summary"]:
        assert [drop["noise"] for drop in row["system"]] == ["resize", "decoder", "color"]
        assert [step["noise"] for step in row["chain"]] == ["decoder", "color", "resize"]
        assert row["combined_drop"] == row["chain"][-1]["drop"]


@pytest.mark.parametrize(
    ("file", "runtimes", "resized"),
    [
        ("resnet8_cifar10_int8.tflite", ("litert", "openvino"), "not-applicable"),
        ("mobilenet_v2_1.0_224_quant.tflite", ("litert",), "done"),
    ],
)
def test_published_tflite_files_go_through_both_profiles(
    shared: Path, tmp_path: Path, file: str, runtimes: tuple[str, ...], resized: str
) -> None:
    data = a_few(shared, tmp_path / "few", small=resized != "done")
    options: dict[str, Any] = {"out": tmp_path / "out", "threads": 1, "target": ",".join(runtimes)}
    model = shared / "models" / "deployed" / file
    attacks = "square:linf:2/255:50" if resized == "done" else None  # the large network takes its time
    quick = robustness(model, data, profile="quick", attacks=attacks, attack_samples=1, **options)
    cells = checked(quick, runtimes)
    assert {cell["status"] for cell in (*cells["square"], *cells["brightness"])} == {"done"}
    cells = checked(robustness(model, data, profile="sysnoise", **options), runtimes)
    assert set(statuses(cells["color"]).values()) == {"done"}
    assert statuses(cells["resize"])["opencv-area"] == resized
    assert {cell["status"] for cell in cells["ceil_mode"]} == {"not-applicable"}


def a_few(shared: Path, folder: Path, *, small: bool) -> Path:
    """Copy two real pictures, of the size of CIFAR-10 or as they were taken."""
    folder.mkdir()
    if small:
        with tarfile.open(shared / "cifar10_jpeg_test.tar.xz") as archive:
            first = {Path(member.name).parent.name: member for member in archive if member.isfile()}
            for kind in first:
                (folder / kind).mkdir()  # empty ones too: the classes are told by their names
            for kind in sorted(first)[:2]:
                content = archive.extractfile(first[kind])
                assert content is not None
                (folder / kind / "a.jpg").write_bytes(content.read())
        return folder
    whole = shared / "imagenet_original_120"
    rows = (whole / "labels.csv").read_text().splitlines()[:3]
    for row in rows[1:]:
        file = folder / row.split(",")[0]
        file.parent.mkdir(exist_ok=True)
        shutil.copy(whole / row.split(",")[0], file)
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_one_folder_keeps_the_answers_of_two_questions_apart(onnx: Path, pictures: Path, tmp_path: Path) -> None:
    """Another pipeline, and Square with other queries, have cells that differ in their question alone."""
    first, second = (
        dict[str, Any](overrides={**FED, "resize": resize}, attacks=f"square:linf:8/255:{queries}")
        for resize, queries in ((32, 20), (44, 90))
    )
    same: dict[str, Any] = {"corruptions": "none", "system": "decoder:pyav", "threads": 1, "target": "onnxruntime"}
    found = [
        robustness(onnx, pictures, out=tmp_path / out, **same, **question)
        for out, question in (("both", first), ("both", second), ("alone", second))
    ]
    assert found[1]["cells"] == found[2]["cells"]
    assert found[0]["cells"] != found[1]["cells"]


def test_files_answer_the_samples_of_the_networks_beside_them(onnx: Path, pictures: Path, tmp_path: Path) -> None:
    found = robustness(
        [network(), onnx], pictures, system="decoder:pyav", out=tmp_path, threads=1, calibration_samples=6,
        limit=12, target="onnxruntime", overrides=SIZE, **CLEAN,
    )  # fmt: skip
    records = Store(found["store"], create=False).query("SELECT model, variant, sample FROM records").to_pylist()
    seen: dict[tuple[str, str], set[str]] = {}
    for row in records:
        seen.setdefault((row["model"], row["variant"]), set()).add(row["sample"])
    assert set(seen) == {("Sequential", "float"), ("Sequential", "w8a8"), ("tiny", "deployed")}
    assert len(set(map(frozenset, seen.values()))) == 1
    assert {cell["n"] for cell in found["cells"]} == {12}


def test_models_of_one_name_are_told_apart(onnx: Path, pictures: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    other = exported(
        nn.Sequential(nn.Conv2d(3, 10, 5, 5), nn.AdaptiveAvgPool2d(1), nn.Flatten()), tmp_path / "b/m.onnx"
    )
    (tmp_path / "a").mkdir()
    shutil.copy(onnx, tmp_path / "a/m.onnx")
    options: dict[str, Any] = {"system": "none", "threads": 1, "target": "onnxruntime", "overrides": FED, **CLEAN}
    found = robustness([tmp_path / "a/m.onnx", other], pictures, out=tmp_path / "out", **options)
    assert [model["name"] for model in found["models"]] == ["a/m.onnx", "b/m.onnx"]
    assert [row["model"] for row in found["summary"]] == ["a/m.onnx", "b/m.onnx"]
    with pytest.raises(BadInput, match=r"m.onnx' twice; wanted each model once"):
        robustness([other, str(other)], pictures, out=tmp_path / "out", **options)


def test_a_damaged_cache_is_loaded_again_and_the_report_says_so(onnx: Path, pictures: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"system": "decoder:pyav", "threads": 1, "target": "onnxruntime", "overrides": FED}

    def run() -> dict[str, Any]:
        return robustness(onnx, pictures, out=tmp_path, cache_gb=0.01, **options, **CLEAN)

    before = run()
    (kept, *others) = sorted((tmp_path / "store" / "cache").glob("*.npz"))
    assert others
    content = bytearray(kept.read_bytes())
    content[len(content) // 2] ^= 1
    kept.write_bytes(content)
    for cell in (tmp_path / "store" / "cells").iterdir():
        cell.unlink()
    after = run()
    assert (after["cells"], after["summary"]) == (before["cells"], before["summary"])
    (said,) = set(after["warnings"]) - set(before["warnings"])
    assert said == f"a cached file was damaged, first {kept.name}; the pictures were loaded again from the data"
    assert kept.name in Path(after["report"]).read_text(encoding="utf-8")
    assert run() == after


@pytest.mark.usefixtures("no_pyav")
def test_a_decoder_that_cannot_be_imported_is_not_applicable(onnx: Path, pictures: Path, tmp_path: Path) -> None:
    system = "decoder:pyav,decoder:camera-yuv,decoder:pyav+resize:opencv-area,resize:opencv-area"
    found = robustness(
        onnx, pictures, system=system, out=tmp_path, threads=1, target="onnxruntime", overrides=FED, **CLEAN
    )
    *without, last = found["cells"]
    assert last["status"] == "done"
    for cell in without:
        assert cell["status"] == "not-applicable"
        assert "the package av cannot be imported; wanted PyAV" in cell["reason"]
        assert "run: pip install" in cell["reason"]


def test_arrays_are_not_decoded(onnx: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    data = [(rng.random((3, 32, 32), dtype=np.float32), index % 10) for index in range(20)]
    options: dict[str, Any] = {"threads": 1, "overrides": FED, "out": tmp_path, "target": "onnxruntime"}
    found = robustness(
        onnx, data, attacks="square:linf:2/255:20", corruptions="brightness:1",
        system="decoder:pyav,resize:opencv-area,decoder:opencv+resize:opencv-area", **options,
    )  # fmt: skip
    cells = checked(found, ("onnxruntime",))
    assert cells["square"][0]["status"] == cells["brightness"][0]["status"] == "done"
    for cell in (cells["decoder"], cells["resize"], cells["decoder+resize"]):
        assert cell[0]["reason"] == "the samples are arrays at network size: nothing is decoded or resized"
    with pytest.raises(BadInput, match=r"input 0 with values from .* wanted values from 0 to 1"):
        robustness(onnx, [(255 * array, label) for array, label in data], **options)


def test_a_truncated_picture_is_left_out_and_named(onnx: Path, pictures: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(pictures, data)
    (data / "3" / "03.jpg").write_bytes(picture(3)[:400])
    options: dict[str, Any] = {"system": "decoder:pyav", "threads": 1, "target": "onnxruntime", "overrides": FED}
    with pytest.raises(BadInput, match=r"1 of 24 samples cannot be used, first '3/03.jpg': corrupt.*--max-bad"):
        robustness(onnx, data, out=tmp_path / "out", **options, **CLEAN)
    found = robustness(onnx, data, out=tmp_path / "out", max_bad=0.1, **options, **CLEAN)
    assert found["data"]["n"] == found["cells"][0]["n"] == 23
    assert [bad["sample"] for bad in found["data"]["bad"]] == ["3/03.jpg"]
    assert any("1 of 24 samples is bad and was left out, first 3/03.jpg" in text for text in found["warnings"])


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("--attacks pgd:linf:2/255", "wanted attacks on scores or labels: square, hopskipjump; ask for those"),
        ("--attacks fgsm,square", "fgsm on tiny: a deployed file gives no gradients"),
        ("--attacks square:linf:8", "L-inf epsilon '8' in noise 'square:linf:8'; wanted at most 1"),
        ("--attacks square:l1:4000", "l1 epsilon '4000' for 3072 entries; wanted at most 3072"),
        ("--attacks square:l2:60", "l2 epsilon '60' for 3072 entries; wanted at most 55.4"),
        ("--attacks fgsm:linf", "noise 'fgsm:linf'; wanted NAME:NORM:EPSILON"),
        ("--attacks square:linf:2/255:20,square:linf:2/255:30", "wanted one number of queries"),
        ("--attack-limit 0", "--attack-limit 0; wanted at least 1"),
        ("--attacks brightness:1", "'brightness' in --attacks; wanted a noise of the family attack"),
        ("--system decoder:pyav+decoder:opencv", "wanted each system noise once"),
        ("--target litert", "--target litert for tiny.onnx; wanted one of onnxruntime, openvino"),
        ("--cache-gb nan", "--cache-gb nan; wanted 0 or more gigabytes"),
        ("--profile quik", "did you mean 'quick'"),
        ("--data DATA/arrays.npz", "a zip file, as .npz is; wanted a folder or a tar archive"),
    ],
)
def test_bad_input_is_refused_in_one_line_before_anything_is_computed(
    onnx: Path, pictures: Path, tmp_path: Path, asked: str, said: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    np.savez(tmp_path / "arrays.npz", x=np.zeros(3))
    out = tmp_path / "out"
    options = ["--data", str(pictures), "--out", str(out), *asked.replace("DATA", str(tmp_path)).split()]
    monkeypatch.setattr(sys, "argv", ["seatrial", "robustness", str(onnx), *options])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr()
    assert ended.value.code == 2
    assert said in told.err
    assert told.err.startswith("seatrial: ")
    assert len(told.err.splitlines()) == 1
    assert not told.out
    assert not out.exists()
