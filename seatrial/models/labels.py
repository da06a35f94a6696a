"""Class names of a model's outputs, from where the model came from or from the text beside its file."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seatrial.core.task import LabelMap
from seatrial.errors import BadInput

_CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
_FILE_LIMIT = 16 << 20


def read_classes(path: Path) -> tuple[str, ...]:
    """Return the class names in a text file, one a line, or in a JSON list; raises BadInput for an empty one."""
    try:
        if path.stat().st_size > _FILE_LIMIT:
            raise BadInput(f"'{path}' is too large", "one class name a line", "pass another file")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"'{path}' cannot be read ({error})", "one class name a line", "check the path") from error
    if path.suffix == ".json":
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BadInput(f"'{path}' is no JSON", "a list of class names", "check the file") from error
        if not isinstance(values, list):
            raise BadInput(f"'{path}' is no JSON list", "a list of class names", "check the file")
        names = tuple(str(value) for value in values)
    else:
        names = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not names:
        raise BadInput(f"'{path}' names no class", "one class name a line", "fill the file")
    return names


def imagenet_labels(rule: str) -> LabelMap:
    """Return the 1,000 classes of ImageNet in their usual order, with what an installed library knows of them."""
    names, wnids = _imagenet()
    return LabelMap(names=names, wnids=wnids, rule=rule)


def labels_of_names(names: Sequence[str], n_outputs: int | None, rule: str) -> LabelMap:
    """Return a label map of named outputs; a first class named background is cut off and the rule says so.

    Raises BadInput where `n_outputs` is known and is another number than that of the names.
    """
    names = tuple(names)
    if n_outputs is not None and len(names) == n_outputs - 1 and names[0].lower() != "background":
        # A list of the true classes beside a model that has one output more.
        raise BadInput(
            f"{len(names)} class names for {n_outputs} outputs",
            "one name for each output",
            "add the missing name, for example 'background' in the first line",
        )
    if n_outputs is not None and len(names) != n_outputs:
        raise BadInput(
            f"{len(names)} class names for {n_outputs} outputs", "one name for each output", "check --classes"
        )
    if len(names) > 1 and names[0].strip().lower() == "background":
        rule += f"; first of {len(names)} outputs is '{names[0]}', so classes are shifted by one"
        return _with_wnids(LabelMap(names=names[1:], background=1, rule=rule))
    return _with_wnids(LabelMap(names=names, rule=rule))


def labels_of_text(text: object, n_outputs: int | None, folder: Path) -> LabelMap | None:
    """Return the labels that the key `labels` of a `FILE.json` describes, or None where it names none.

    Understood: a list of names; names after a colon, when there are as many as outputs; the name of a file in `folder`
    (never elsewhere); the data sets ImageNet-1k and CIFAR-10 by name.
    """
    if isinstance(text, list):
        return labels_of_names([str(name) for name in text], n_outputs, "class names of the file beside the model")
    if not isinstance(text, str):
        return None
    listed = re.split(r"[,\s]+", text.partition(":")[2].strip())
    if n_outputs is not None and len(listed) == n_outputs and all(listed):
        return labels_of_names(listed, n_outputs, "class names of the file beside the model")
    found = re.match(r"([\w.\-]+\.(?:txt|json|names))\b", text.strip())
    if found and (folder / found.group(1)).is_file():
        names = read_classes(folder / found.group(1))
        return labels_of_names(names, n_outputs, f"class names of {found.group(1)}")
    if re.match(r"\s*imagenet", text, re.I) and n_outputs in (1000, 1001, None):
        return _shifted(imagenet_labels("ImageNet classes, as the file beside the model says"), n_outputs)
    if re.match(r"\s*cifar-?10\b", text, re.I) and n_outputs in (10, None):
        return LabelMap(names=tuple(_CIFAR10.split()), rule="CIFAR-10 classes, as the file beside the model says")
    return None


def labels_of_config(id2label: Mapping[Any, Any] | None, n_outputs: int | None) -> LabelMap | None:
    """Return the labels of a transformers configuration, None where they are placeholders such as `LABEL_0`."""
    if not id2label:
        return None
    names = [str(id2label[key]) for key in sorted(id2label, key=lambda key: int(str(key)))]
    if all(re.fullmatch(r"LABEL_\d+", name) for name in names) or (n_outputs is not None and len(names) != n_outputs):
        return None
    return labels_of_names(names, n_outputs, "class names of the model's configuration")


def fit_labels(labels: LabelMap, n_outputs: int, n_classes: int) -> LabelMap:
    """Return the label map for data of `n_classes` classes and a model of `n_outputs` outputs.

    A model with one class more than the labels and a first class named background is shifted by one; a model whose
    background class is a class of the data is not. Raises BadInput where the data has more classes than the model.
    """
    if labels.background and n_classes == n_outputs:
        return LabelMap(
            ("background", *labels.names), rule="the data has all classes of the model, background included"
        )
    named = bool(labels.names) and labels.names[0].strip().lower() == "background"
    if not labels.background and named and len(labels.names) == n_outputs and n_classes < n_outputs:
        rule = f"{labels.rule}; first of {n_outputs} outputs is '{labels.names[0]}', so classes are shifted by one"
        labels = dataclasses.replace(labels, names=labels.names[1:], wnids=(), background=1, rule=rule)
    if n_classes > n_outputs - labels.background:
        raise BadInput(
            f"labels of {n_classes} classes for a model of {n_outputs - labels.background}",
            "labels within the model's classes",
            "check the data folder, or say which class is which with --classes FILE",
        )
    return labels


def _shifted(labels: LabelMap, n_outputs: int | None) -> LabelMap:
    if n_outputs != 1001:
        return labels
    rule = labels.rule + "; 1001 outputs, so the first is taken as background and classes are shifted by one"
    return dataclasses.replace(labels, background=1, rule=rule)


def _with_wnids(labels: LabelMap) -> LabelMap:
    """Add wnids where the names are ImageNet's own, or are wnids themselves."""
    if all(re.fullmatch(r"n\d{8}", name) for name in labels.names):
        return dataclasses.replace(labels, wnids=labels.names)
    names, wnids = _imagenet() if len(labels.names) == 1000 else ((), ())
    if wnids:
        pairs = list(zip(names, labels.names, strict=True))
        alike = sum(_first(a) == _first(b) for a, b in pairs)
        if alike > 0.8 * len(pairs):
            return dataclasses.replace(labels, wnids=wnids)
    return labels


def _first(name: str) -> str:
    return name.partition(",")[0].strip().lower()


def _imagenet() -> tuple[tuple[str, ...], tuple[str, ...]]:
    try:
        from timm.data.imagenet_info import ImageNetInfo

        info = ImageNetInfo()
        return tuple(str(name) for name in info.label_descriptions()), tuple(info.label_names())
    except ImportError:
        pass
    try:
        from torchvision.models._meta import _IMAGENET_CATEGORIES

        return tuple(_IMAGENET_CATEGORIES), ()
    except ImportError:
        return (), ()
