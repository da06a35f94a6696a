"""Latency of our W8A8 against NNCF's on OpenVINO, and against quantize_static's on ONNX Runtime; batch 1.

    python benchmarks/nncf_latency.py [--squeezenet FILE.pt2] [--peers FOLDER] [--launches 3] [--rounds 20]
        [--threads 2] [--models resnet18,deit_tiny_patch16_224] [--limit 1.05]

ResNet-18, MobileNetV3-Large and DeiT-Tiny have random weights, with statistics of batch norms drawn too; SqueezeNet 1.1
comes from a file. All sides get the same float weights, normalization in the graph and the same calibration pictures.
NNCF (transformer mode for DeiT) quantizes what `ov.convert_model` makes of the captured graph, once from PyTorch and
once from our float ONNX file, because the runtime fuses the two differently; ours is held against the faster one.

Every model runs in a process of its own. A round gives each some calls, in turn and backwards the next time; the ratio
is taken within a round, so that the neighbors of a shared machine slow both. The table tells the median ratio over all
rounds, its 10th and 90th percentile, and the medians of the launches. Ends with 1 where a ratio on OpenVINO is above
the limit. NNCF is installed on demand, without its dependencies, into a folder of its own; `--peers` keeps it.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from seatrial.core.chance import generator
from seatrial.core.graph import Graph, Normalization, capture, from_program
from seatrial.core.precision import Bits
from seatrial.core.realise import realise
from seatrial.core.target import Artefact, Target
from seatrial.deploy.machine import this_machine
from seatrial.deploy.onnxruntime import OnnxRuntime
from seatrial.deploy.openvino import OpenVino
from seatrial.deploy.stopwatch import ChildProcess, Subject
from seatrial.models.program import open_program
from seatrial.numerics.batch_norm import fold_batch_norm
from seatrial.quant.nearest import Nearest
from seatrial.quant.placement import place

PEERS = ["nncf==3.4.0", "ninja==1.13.2", "pydot==4.0.1", "pyparsing==3.3.3", "tabulate==0.10.0"]
TIMM = ("resnet18", "mobilenetv3_large_100", "deit_tiny_patch16_224")
NORMALIZATION = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Row:
    """One model against one opponent: milliseconds and ratios of every round, a row a launch."""

    model: str
    setting: str
    opponent: str
    ours_ms: np.ndarray
    theirs_ms: np.ndarray

    @property
    def ratios(self) -> np.ndarray:
        """Our time over theirs, round by round."""
        return self.ours_ms / self.theirs_ms

    def __str__(self) -> str:
        low, middle, high = np.percentile(self.ratios, [10, 50, 90])
        launches = np.median(self.ratios, axis=1)
        return (
            f"| {self.model} | {self.setting} | {self.opponent} | {np.median(self.ours_ms):.2f} "
            f"| {np.median(self.theirs_ms):.2f} | {middle:.3f} | {low:.2f}..{high:.2f} "
            f"| {launches.min():.2f}..{launches.max():.2f} |"
        )


def install_peers(folder: Path) -> None:
    """Install NNCF into `folder`, once, and let Python find it after everything else."""
    if importlib.util.find_spec("nncf") is not None:
        return
    if not (folder / "nncf").is_dir():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *PEERS]
        subprocess.run(command, check=True)
    sys.path.append(str(folder))
    importlib.invalidate_caches()


def timm_graph(name: str) -> Graph:
    """Capture a network of timm with random weights whose batch norms do something."""
    import timm

    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert isinstance(module.running_mean, Tensor)
            assert isinstance(module.running_var, Tensor)
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.8, 1.2)
            nn.init.normal_(module.bias, 0, 0.1)
    return capture(model, torch.rand(2, 3, 224, 224), normalization=NORMALIZATION)


def pictures(count: int) -> Tensor:
    """Return smooth random pictures with some noise, float32 NCHW in [0, 1]."""
    chance = torch.Generator().manual_seed(1)
    coarse = torch.rand(count, 3, 14, 14, generator=chance)
    smooth = nn.functional.interpolate(coarse, size=(224, 224), mode="bilinear")
    return (0.9 * smooth + 0.1 * torch.rand(smooth.shape, generator=chance)).clamp(0, 1)


def ours(graph: Graph, target: Target, inputs: Tensor, path: Path) -> Artefact:
    """Quantize as `seatrial quantize` does and compile for a target."""
    folded = fold_batch_norm(graph)
    precision = place(folded, target.placement, Bits(8, 8))
    recipe = Nearest().plan(folded, list(inputs.split(8)), precision, rng=generator(0, "nearest"))
    return target.compile(realise(folded, recipe), path, bits="w8a8")


def nncf_of(source: nn.Module | str, inputs: Tensor, path: Path, *, transformer: bool) -> Artefact:
    """Convert, quantize with NNCF's defaults, and save as OpenVINO's own format."""
    import nncf  # pyright: ignore[reportMissingImports]
    import openvino as ov

    example = None if isinstance(source, str) else inputs[:1]
    model = ov.convert_model(source, example_input=example)
    model.reshape([1, 3, 224, 224])
    arrays = inputs.numpy()
    quantized = nncf.quantize(
        model,
        nncf.Dataset([arrays[i : i + 1] for i in range(len(arrays))]),
        subset_size=len(arrays),
        model_type=nncf.ModelType.TRANSFORMER if transformer else None,
    )
    ov.save_model(quantized, str(path), compress_to_fp16=False)
    return Artefact(path, "ir", "w8a8", {})


def static_of(graph: Graph, inputs: Tensor, folder: Path, name: str) -> Artefact:
    """Quantize our float ONNX file with ONNX Runtime's own tool: QDQ, u8 activations, s8 weights per channel."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._left = iter(inputs.numpy())

        def get_next(self) -> dict[str, np.ndarray] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
            array = next(self._left, None)
            return None if array is None else {"image": array[None]}

    plain = OnnxRuntime().compile(fold_batch_norm(graph), folder / f"{name}-plain", bits="float32").path
    prepared, path = folder / f"{name}-prepared.onnx", folder / f"{name}-static.onnx"
    quant_pre_process(str(plain), str(prepared))
    unsigned, signed = QuantType.QUInt8, QuantType.QInt8
    quantize_static(str(prepared), str(path), Reader(), per_channel=True, activation_type=unsigned, weight_type=signed)
    return Artefact(path, "onnx", "w8a8", {})


def alternated(subjects: list[Subject], options: argparse.Namespace) -> np.ndarray:
    """Return the median milliseconds of each subject in each round: [launch, round, subject]."""
    told = np.zeros((options.launches, options.rounds, len(subjects)))
    for launch in range(options.launches):
        runners: list[ChildProcess] = []
        try:
            for subject in subjects:
                runners.append(ChildProcess(subject, options.threads))
                runners[-1].prepare(1)
                runners[-1].calls(5)
            for turn in range(options.rounds):
                order = range(len(runners)) if turn % 2 == 0 else reversed(range(len(runners)))
                for i in order:  # the first call wakes the process up and does not count
                    told[launch, turn, i] = np.median(runners[i].calls(options.calls + 1)[1:])
        finally:
            for runner in runners:
                runner.end()
    return told


def with_hint(artefact: Artefact, hint: str) -> Subject:
    """Return the same files under one of OpenVINO's precision hints."""
    return Subject("openvino", Artefact(artefact.path, artefact.format, "w8a8", {**artefact.settings, "hint": hint}))


def openvino_rows(name: str, graph: Graph, inputs: Tensor, folder: Path, options: argparse.Namespace) -> list[Row]:
    """Return our model against the faster of NNCF's, for each hint that this machine executes."""
    transformer = "deit" in name
    plain = OpenVino().compile(graph, folder / f"{name}-float", bits="float32")
    made = {
        "ours": ours(graph, OpenVino(), inputs, folder / f"{name}-openvino"),
        "NNCF (PyTorch)": nncf_of(graph.module, inputs, folder / f"{name}-torch.xml", transformer=transformer),
        "NNCF (ONNX)": nncf_of(str(plain.path), inputs, folder / f"{name}-onnx.xml", transformer=transformer),
    }
    rows = []
    for hint in ("f32", "bf16"):
        if hint == "bf16" and "bf16" not in OpenVino().precisions:
            continue
        told = alternated([with_hint(artefact, hint) for artefact in made.values()], options)
        best = 1 + int(np.argmin(np.median(told[..., 1:], axis=(0, 1))))
        rows.append(Row(name, f"OpenVINO {hint}", list(made)[best], told[..., 0], told[..., best]))
    return rows


def onnxruntime_rows(name: str, graph: Graph, inputs: Tensor, folder: Path, options: argparse.Namespace) -> list[Row]:
    """Return our model against quantize_static's and against the float model."""
    subjects = [
        Subject("onnxruntime", ours(graph, OnnxRuntime(), inputs, folder / f"{name}-ort")),
        Subject("onnxruntime", static_of(graph, inputs, folder, name)),
        Subject("onnxruntime", OnnxRuntime().compile(fold_batch_norm(graph), folder / f"{name}-f", bits="float32")),
    ]
    told = alternated(subjects, options)
    return [
        Row(name, "ONNX Runtime", "quantize_static", told[..., 0], told[..., 1]),
        Row(name, "ONNX Runtime", "float32", told[..., 0], told[..., 2]),
    ]


def main() -> int:
    """Print one row a model, runtime and hint; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--squeezenet", type=Path, help="squeezenet1_1_imagenet.pt2; left out without")
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--models", default=",".join(TIMM))
    parser.add_argument("--launches", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--calls", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--limit", type=float, default=1.05)
    options = parser.parse_args()
    machine = this_machine(options.threads)
    print(f"{machine.cpu}, {machine.cores} cores, {options.threads} threads, {', '.join(machine.instruction_sets)}")
    makers: dict[str, Callable[[], Graph]] = {
        name: (lambda name=name: timm_graph(name)) for name in options.models.split(",") if name
    }
    if options.squeezenet:
        program = open_program(options.squeezenet)
        makers["squeezenet1_1"] = lambda: from_program(program, normalization=NORMALIZATION)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        install_peers(options.peers or folder / "peers")
        logging.disable(logging.WARNING)
        inputs = pictures(options.pictures)
        for name, make in makers.items():
            graph = make()
            for measure in (openvino_rows, onnxruntime_rows):
                found = measure(name, graph, inputs, folder, options)
                print(*found, sep="\n", file=sys.stderr, flush=True)
                rows += found
    print("| model | runtime | opponent | ours ms | theirs ms | ratio | 10th..90th | launches |")
    print("|---|---|---|---|---|---|---|---|")
    print(*rows, sep="\n")
    slow = [row for row in rows if row.setting.startswith("OpenVINO") and np.median(row.ratios) > options.limit]
    print(f"above {options.limit}: {', '.join(f'{row.model} {row.setting}' for row in slow)}" if slow else "all within")
    return int(bool(slow))


if __name__ == "__main__":
    sys.exit(main())
