"""The command line: help with examples, exit codes, one-line messages, JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from seatrial.cli.main import app, main

COMMANDS = ("trial", "robustness", "qat", "harden", "quantize", "evaluate", "profile", "report", "list", "sweep")
FACTORY = "tiny_network:network"
QUICK = ["--limit", "30", "--threads", "1", "--target", "onnxruntime", "--input-size", "32"]


def call(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["seatrial", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    shown = CliRunner().invoke(app, [command, "--help"])
    assert shown.exit_code == 0
    assert f"Example: seatrial {command}" in " ".join(shown.output.replace("│", " ").split())


def test_list_writes_its_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call("list", "--json", str(tmp_path / "l.json"), monkeypatch=monkeypatch) == 0
    data = json.loads((tmp_path / "l.json").read_text())
    assert {"family", "name", "paper", "needs"} == set(data["entries"][0])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trial", "--bits", "w1a1"], "2 to 8"),
        (["trial", "torchvision:resnt18"], "did you mean 'resnet18'"),
        (["trial", "nothing.pt2"], "nothing.pt2"),
        (["trial", "digits-cnn", "--data", "/nowhere"], "/nowhere"),
        (["trial", "digits-cnn", "--max-bad", "much"], "percentage"),
        (["trial", "digits-cnn", "--input-size", "big"], "HEIGHTxWIDTH"),
        (["quantize", "model.onnx"], "model.onnx"),
        (["list", "atack"], "did you mean 'attack'"),
        (["sweep", "missing.toml"], "missing.toml"),
        (["report", "missing"], "missing"),
        (["nonsense"], "No such command"),
        (["trial", "--limit", "many"], "--limit"),
    ],
)
def test_bad_input_ends_with_2_and_one_line(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(*arguments, monkeypatch=monkeypatch) == 2
    told = capsys.readouterr().err
    assert said in told
    assert "Traceback" not in told
    assert len(told.strip().splitlines()) == 1


def test_fail_if_ends_with_3_and_a_trial_writes_its_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["trial", FACTORY, "--noise", "none", "--out", str(tmp_path / "o"), *QUICK]
    told = tmp_path / "t.json"
    code = call(*common, "--json", str(told), "--fail-if", "w8a8.top1 <= 100%", monkeypatch=monkeypatch)
    assert code == 3
    assert "--fail-if" in capsys.readouterr().err
    assert json.loads(told.read_text())["variants"][0]["name"] == "float"
    assert call(*common, "--fail-if", "w8a8.top1 < 0", monkeypatch=monkeypatch) == 0


def test_a_folder_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    arguments = ["trial", FACTORY, "--noise", "none", "--out", str(tmp_path / "file" / "o"), *QUICK]
    assert call(*arguments, monkeypatch=monkeypatch) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_ctrl_c_ends_with_130_and_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("seatrial.jobs.planned.sweep", stop)
    arguments = ["trial", FACTORY, "--noise", "none", "--out", str(tmp_path / "o"), *QUICK]
    assert call(*arguments, monkeypatch=monkeypatch) == 130
    assert "goes on where it was" in capsys.readouterr().err


def test_a_sweep_of_a_toml_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "s.toml"
    file.write_text(
        f'models = ["digits-cnn"]\ntargets = ["onnxruntime"]\nnoise = "none"\nlimit = 30\nthreads = 1\n'
        f'bits = ["w8a8"]\nout = {json.dumps(str(tmp_path / "out"))}\n'
    )
    seen = []
    monkeypatch.setattr("seatrial.jobs.sweeping.trial", lambda *a, **k: seen.append((a, k)) or None)
    from seatrial.jobs.sweeping import run_sweep

    assert run_sweep(file) == [None]
    ((arguments, options),) = seen
    assert arguments == ("digits-cnn", None)
    assert options["settings"].bits == "w8a8"
    assert options["settings"].target == "onnxruntime"
