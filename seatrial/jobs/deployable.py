"""A folder that runs without seatrial: the model, how to prepare a picture, the labels, and a short script."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from seatrial.core.target import Artefact
from seatrial.jobs.result import write_text
from seatrial.jobs.subject import Subject

_SCRIPT = '''"""Classify pictures with {name}; needs {package}, numpy and pillow: python run.py PICTURE ..."""
import json, pathlib, sys
import numpy as np
from PIL import Image, ImageOps
{imports}
here = pathlib.Path(__file__).parent
config = json.loads((here / "preprocessing.json").read_text())
labels = (here / "labels.txt").read_text(encoding="utf-8").splitlines()
{session}
for path in sys.argv[1:]:
    picture = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    height, width = config["input"]
    near = config["skip_up_to"] and min(picture.size) <= config["skip_up_to"] * min(height, width)
    if config["resize"] and not (near and min(picture.size) >= min(height, width)):
        scale = config["resize"] / min(picture.size)
        size = [config["resize"] if side == min(picture.size) else int(side * scale) for side in picture.size]
        picture = picture.resize(size, Image.Resampling[config["interpolation"].upper()])
    half = round if config["odd_margin"] == "even" else int
    left, top = half((picture.width - width) / 2), half((picture.height - height) / 2)
    pixels = np.asarray(picture.crop((left, top, left + width, top + height)), np.float32) / 255
    scores = {run}[0]
    best = int(scores.argmax()) - config["background"]
    print(path, labels[best] if 0 <= best < len(labels) else best)
'''


def write_deployable(
    folder: Path,
    artefact: Artefact,
    target: str,
    subject: Subject,
) -> list[Path]:
    """Copy an artefact with preprocessing, labels and a script under `folder`; returns the files.

    Labels are the model's class names, else those of the data it was tried on, else numbers.
    """
    pipeline, labels = subject.pipeline, subject.task.labels
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for source in artefact.files:
        files.append(Path(shutil.copy2(source, folder / source.name.replace(artefact.path.stem, "model", 1))))
    resize = pipeline.resize
    config = {
        "input": list(pipeline.crop_px),
        "resize": resize.short_side_px if resize is not None else None,
        "interpolation": resize.interpolation if resize is not None else "bilinear",
        "skip_up_to": resize.skip_up_to if resize is not None else None,
        "crop": pipeline.crop_px[0],
        "odd_margin": pipeline.odd_margin,
        "mean": [0.0, 0.0, 0.0],
        "std": [1.0, 1.0, 1.0],
        "background": labels.background,
        "note": "pixels / 255, RGB, NCHW float32; normalization is inside the model",
    }
    write_text(folder / "preprocessing.json", json.dumps(config, indent=1) + "\n")
    numbers = range((subject.model.n_outputs or 0) - labels.background)
    names = labels.names or tuple(subject.evaluation.class_names) or tuple(str(number) for number in numbers)
    write_text(folder / "labels.txt", "\n".join(names) + "\n")
    openvino = target == "openvino"
    hint = artefact.settings.get("hint", "f32")
    session = (
        f'model = openvino.Core().compile_model(here / "model.onnx", "CPU", {{"INFERENCE_PRECISION_HINT": "{hint}"}})'
        if openvino
        else 'session = onnxruntime.InferenceSession(here / "model.onnx")'
    )
    run = (
        "model(pixels.transpose(2, 0, 1)[None])"
        if openvino
        else ("session.run(None, {session.get_inputs()[0].name: pixels.transpose(2, 0, 1)[None]})")
    )
    package = "openvino" if openvino else "onnxruntime"
    script = _SCRIPT.format(
        name=subject.model.name, package=package, imports=f"import {package}", session=session, run=run
    )
    write_text(folder / "run.py", script)
    return [*files, folder / "preprocessing.json", folder / "labels.txt", folder / "run.py"]
