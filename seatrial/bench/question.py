"""What a cell's answers depend on, as canonical text; its hash names the cell."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from fractions import Fraction
from pathlib import PurePath
from typing import Any

import numpy as np

from seatrial.bench.plan import Group, Noise, Plan, Subject
from seatrial.core.cell import Cell, digest, question
from seatrial.core.noise import Access, Attack
from seatrial.core.predictor import Predictor

_SUBJECTS = ("variant", "target", "subject", "access")
"""The parts of a cell's question that its group does not have."""


def cell_of(group: Group, subject: Subject, plan: Plan) -> Cell:
    """Return the cell of one subject in a group; raises TypeError for a noise whose options are no plain data."""
    parts = {
        **_parts(group, plan),
        "variant": subject.name,
        "target": subject.target,
        "subject": subject.digest,
        "access": victim_of(group, subject)[1],
    }
    return Cell(subject.name, subject.target, group.spec, question(**parts))


def group_key(group: Group, plan: Plan) -> str:
    """Return the name under which a group is claimed: the question without the subjects.

    So two sweeps that share only some subjects still never compute one cell twice.
    """
    return digest(question(**_parts(group, plan)))


def group_of(cell: Cell) -> str:
    """Return the `group_key` of the group that a cell belongs to."""
    parts = json.loads(cell.question)
    return digest(question(**{name: part for name, part in parts.items() if name not in _SUBJECTS}))


def victim_of(group: Group, subject: Subject) -> tuple[Predictor | None, Access | None]:
    """Return which predictor an attack looks into, and what that access is called; (None, None) where none will do.

    Gradients come from the surrogate, or from the parent where the group says so. An attack that needs scores or
    labels only asks the judged predictor itself.
    """
    attack = group.noise
    if not isinstance(attack, Attack):
        return None, None
    if group.spec is not None and group.spec.from_float:
        usable = subject.parent is not None and attack.needs <= subject.parent.gives
        return (subject.parent, "transfer") if usable else (None, None)
    if "gradients" in attack.needs:
        if subject.surrogate is None or not attack.needs <= subject.surrogate.gives:
            return None, None
        return subject.surrogate, "white-box" if subject.surrogate is subject.predictor else "transfer"
    if not attack.needs <= subject.predictor.gives:
        return None, None
    return subject.predictor, "score" if "logits" in attack.needs else "decision"


def options(noise: object) -> dict[str, Any]:
    """Return the public options of a noise as JSON values: dataclass fields, else public attributes."""
    if is_dataclass(noise):
        found = {field.name: getattr(noise, field.name) for field in fields(noise)}
    else:
        found = vars(noise)
    return {name: _plain(value, f"{type(noise).__name__}.{name}") for name, value in found.items() if name[0] != "_"}


def _parts(group: Group, plan: Plan) -> dict[str, Any]:
    task = {"class": type(plan.task).__name__, **options(plan.task)}
    return {
        "model": plan.model,
        "data": plan.dataset.digest,
        "pipeline": _plain(plan.pipeline, "pipeline"),
        # A thousand class names would stand in every file; their digest does as well.
        "task": digest(question(**task)),
        "noise": _noise(group, group.noise) if group.noise is not None else None,
        "seed": plan.seed,
        "batch": plan.batch,
        "threads": plan.threads,
        "libraries": dict(plan.libraries),
    }


def _noise(group: Group, noise: Noise) -> dict[str, Any]:
    spec = asdict(group.spec) if group.spec is not None else {}
    return {**spec, "class": type(noise).__name__, "options": options(noise)}


def _plain(value: Any, where: str) -> Any:
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case np.generic():
            return _plain(value.item(), where)
        case Fraction() | PurePath():
            return str(value)
        case Mapping():
            return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
        case list() | tuple():
            return [_plain(item, where) for item in value]
        case set() | frozenset():
            return sorted(_plain(item, where) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return {"class": type(value).__name__, **options(value)}
    raise TypeError(f"option {where} is a {type(value).__name__}; options that decide answers must be plain data")
