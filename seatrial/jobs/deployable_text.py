"""A folder that runs without seatrial: the model, its tokenizer, the labels, and a short script."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from seatrial.core.target import Artefact
from seatrial.jobs.result import write_text
from seatrial.jobs.text_subject import TextSubject

_SCRIPT = '''"""{does} with {name}; needs {package}, numpy and tokenizers: python run.py TEXT ..."""
import json, pathlib, sys
import numpy as np
import tokenizers
import {package}
here = pathlib.Path(__file__).parent
config = json.loads((here / "text.json").read_text(encoding="utf-8"))
tokenizer = tokenizers.Tokenizer.from_file(str(here / "tokenizer.json"))
tokenizer.no_truncation()
tokenizer.no_padding()
{session}
for text in sys.argv[1:]:
    front, back = config["front"], config["back"]
    ids = tokenizer.encode(text, add_special_tokens=False).ids[: config["length"] - len(front) - len(back)]
    ids = np.array([[*front, *ids, *back]])
    given = {{"input_ids": ids, "attention_mask": np.ones_like(ids)}}
    scores = {run}
{answer}
'''
_CLASSIFY = """    best = int(scores[0].argmax())
    print(text, config["labels"][best], sep="\\t")"""
_SCORE = """    scores, wanted = scores[0, :-1].astype(np.float64), ids[0, 1:]
    most = scores.max(1)
    losses = most + np.log(np.exp(scores - most[:, None]).sum(1)) - scores[np.arange(len(wanted)), wanted]
    print(text, f"{losses.sum():.6g} nats in {len(wanted)} tokens", sep="\\t")"""


def write_text_deployable(folder: Path, artefact: Artefact, target: str, subject: TextSubject) -> list[Path]:
    """Copy an ONNX artefact with tokenizer, labels and a script under `folder`; returns the files.

    The script classifies each text, or tells how likely it is. A tokenizer without `tokenizer.json` gets no script.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for source in artefact.files:
        files.append(Path(shutil.copy2(source, folder / source.name.replace(artefact.path.stem, "model", 1))))
    saved = subject.tokenizer.save(folder)
    classifies = subject.task_name == "classification"
    tokenizer = subject.tokenizer
    begin = () if tokenizer.begin is None else (tokenizer.begin,)
    config = {
        "front": list(tokenizer.front if classifies else begin),
        "back": list(tokenizer.back if classifies else ()),
        "length": subject.window if classifies else tokenizer.length,
        "inputs": [spec.name for spec in subject.model.graph.inputs],
        "labels": list(subject.class_names) if classifies else [],
    }
    write_text(folder / "text.json", json.dumps(config, indent=1) + "\n")
    files += [*saved, folder / "text.json"]
    if not (folder / "tokenizer.json").is_file():
        return files
    inputs = "{name: given[name] for name in config['inputs']}"
    openvino = target == "openvino"
    hint = artefact.settings.get("hint", "f32")
    script = _SCRIPT.format(
        does="Classify texts" if classifies else "Tell how likely texts are",
        name=subject.model.name,
        package="openvino" if openvino else "onnxruntime",
        session=f'model = openvino.Core().compile_model(here / "model.onnx", "CPU", '
        f'{{"INFERENCE_PRECISION_HINT": "{hint}"}})'
        if openvino
        else 'session = onnxruntime.InferenceSession(here / "model.onnx")',
        run=f"model({inputs})[0]" if openvino else f"session.run(None, {inputs})[0]",
        answer=_CLASSIFY if classifies else _SCORE,
    )
    write_text(folder / "run.py", script)
    return [*files, folder / "run.py"]
