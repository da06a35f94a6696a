"""A deployed file (`.onnx`, `.tflite`): evaluated as it is, never quantized."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from seatrial.core.pipeline import Pipeline
from seatrial.core.task import LabelMap
from seatrial.errors import BadInput
from seatrial.models.labels import labels_of_names, labels_of_text
from seatrial.models.onnx_file import check_onnx
from seatrial.models.port import Port, Ports
from seatrial.models.preprocessing import Overrides, assumed, config_beside, of_json, overridden
from seatrial.models.tflite_file import check_tflite

_DTYPES = ("float32", "float16", "uint8", "int8", "int16")


@dataclass(frozen=True)
class ArtefactModel:
    """A deployed model and how to feed it.

    For a picture x (float32 RGB in [0, 1]) the file wants v = (x - mean) / std in `layout`; for integer inputs the code
    round(v / input_scale) + input_zero_point of type `input_dtype`. `input_shape` is in the file's layout, None where
    dynamic. `probabilities` says that the outputs went through a softmax; `digest` is the hash of the file.
    """

    name: str
    source: str
    path: Path
    format: Literal["onnx", "tflite"]
    pipeline: Pipeline
    labels: LabelMap
    digest: str
    layout: Literal["NCHW", "NHWC"]
    input_name: str
    input_shape: tuple[int | None, ...]
    input_dtype: str = "float32"
    input_scale: float | None = None
    input_zero_point: int | None = None
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    n_outputs: int | None = None
    probabilities: bool = False
    widest_weight: int = 0
    """The largest absolute code among signed 8-bit weights, 0 without any."""
    warnings: tuple[str, ...] = ()
    kind: Literal["image"] = "image"


def open_artefact(path: Path, user: Overrides, names: Sequence[str] | None) -> ArtefactModel:
    """Check a deployed file and return how to feed it, from `FILE.json` beside it and from the file itself.

    Raises BadInput for damaged or unsafe files, for other inputs than one RGB picture, and where the input's integer
    grid is unknown.
    """
    file_format: Literal["onnx", "tflite"] = "onnx" if path.suffix.lower() == ".onnx" else "tflite"
    ports = check_onnx(path) if file_format == "onnx" else check_tflite(path)
    port = _picture(ports, path)
    layout, size = _layout(port, path, user)
    beside = config_beside(path)
    config: Mapping[str, Any] = beside[0] if beside else {}
    preprocessing = overridden(of_json(config, size, beside[1]) if beside else assumed(size), user)
    if preprocessing.pipeline.crop_px != size:
        raise BadInput(
            f"a crop of {preprocessing.pipeline.crop_px}", f"{size}, the input of '{path}'", "correct --crop"
        )
    notes = list(preprocessing.warnings)
    scale, zero_point = _grid(port, config, path, notes)
    last = ports.outputs[0].shape
    count = last[-1] if len(last) >= 2 else None
    if names:
        labels = labels_of_names(names, count, "--classes")
    else:
        labels = labels_of_text(config.get("labels"), count, path.parent) or _neighbours(path, count)
    if labels.background:
        notes.append(labels.rule)
    return ArtefactModel(
        name=path.stem,
        source=str(path.resolve()),
        path=path.resolve(),
        format=file_format,
        pipeline=preprocessing.pipeline,
        labels=labels,
        digest=_digest(path),
        layout=layout,
        input_name=port.name,
        input_shape=port.shape,
        input_dtype=port.dtype,
        input_scale=scale,
        input_zero_point=zero_point,
        mean=preprocessing.mean,
        std=preprocessing.std,
        n_outputs=count,
        probabilities=ports.ends_in_softmax,
        widest_weight=ports.widest_weight,
        warnings=tuple(notes),
    )


def _picture(ports: Ports, path: Path) -> Port:
    port = ports.inputs[0]
    if len(ports.inputs) != 1 or len(port.shape) != 4 or port.dtype not in _DTYPES:
        shown = ", ".join(f"{entry.name} {entry.dtype} {entry.shape}" for entry in ports.inputs[:4])
        raise BadInput(f"'{path}' with inputs {shown}", "one RGB picture", "pass an image classifier")
    return port


def _layout(port: Port, path: Path, user: Overrides) -> tuple[Literal["NCHW", "NHWC"], tuple[int, int]]:
    _, *shape = port.shape
    layout: Literal["NCHW", "NHWC"]
    if shape[0] == 3 or (shape[0] is None and shape[2] != 3):
        layout, size = "NCHW", shape[1:]
    elif shape[2] == 3:
        layout, size = "NHWC", shape[:2]
    else:
        raise BadInput(f"'{path}' with an input of shape {port.shape}", "3 channels (RGB)", "pass an image classifier")
    height, width = size
    if height is None or width is None:
        if user.input_size_px is None:
            raise BadInput(f"'{path}' with an input of any size", "a size", "pass --input-size HEIGHT WIDTH")
        return layout, user.input_size_px
    if user.input_size_px not in (None, (height, width)):
        raise BadInput(f"--input-size {user.input_size_px}", f"{(height, width)}, as in '{path}'", "leave it out")
    return layout, (height, width)


def _grid(port: Port, config: Mapping[str, Any], path: Path, notes: list[str]) -> tuple[float | None, int | None]:
    """Return scale and zero point of an integer input: of the file beside the model, else of the model itself."""
    if port.dtype.startswith("float"):
        return None, None
    inner = config.get("input")
    stated: Mapping[str, Any] = inner if isinstance(inner, Mapping) else {}
    scale = config.get("scale", stated.get("scale"))
    zero_point = config.get("zero_point", stated.get("zero_point"))
    if scale is None:
        scale, zero_point = port.scale, port.zero_point
    if scale is None:
        # A file that takes bytes and says nothing takes pixels.
        scale, zero_point = 1 / 255, {"uint8": 0, "int8": -128}.get(port.dtype)
        notes.append("scale of the integer input assumed: pixels as they are")
    elif port.scale is not None and abs(float(scale) - port.scale) > 1e-3 * port.scale:
        notes.append(f"scale {scale} beside the model differs from {port.scale} in it")
    if not isinstance(scale, int | float) or scale <= 0 or not isinstance(zero_point, int):
        raise BadInput(
            f"an input grid of scale {scale!r} and zero point {zero_point!r} for '{path}'",
            "a positive scale and an integer zero point",
            "state `scale` and `zero_point` in the .json beside it",
        )
    return float(scale), zero_point


def _neighbours(path: Path, count: int | None) -> LabelMap:
    """Return the classes in `labels.txt` beside a file, as our own exports have them, else none."""
    beside = path.parent / "labels.txt"
    found = labels_of_text("labels.txt", count, path.parent) if beside.is_file() else None
    return found or LabelMap()


def _digest(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for file in (path, path.with_name(path.name + ".data")):
        if file.is_file():
            with file.open("rb") as stream:
                while chunk := stream.read(1 << 20):
                    digest.update(chunk)
    return digest.hexdigest()


def with_labels(model: ArtefactModel, labels: LabelMap) -> ArtefactModel:
    """Return the model with another label map."""
    return dataclasses.replace(model, labels=labels)
