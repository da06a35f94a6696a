"""What each noise does to one picture, for the report."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from seatrial.bench.group import sample_generator
from seatrial.bench.plan import Plan
from seatrial.bench.plan import Subject as SweptSubject
from seatrial.bench.question import victim_of
from seatrial.core.noise import Attack, Corruption, System, SystemNoise
from seatrial.core.sample import Picture, Sample
from seatrial.core.task import Classification, LabelMap
from seatrial.data.load import load, load_input, to_input
from seatrial.errors import NoNoise, NotApplicable


def example_pictures(plan: Plan, subjects: Sequence[SweptSubject]) -> list[dict[str, Any]]:
    """Return the first sample of a plan, clean and under each noise that changes it, with each subject's answer.

    Attacks are shown as found on this sample alone, for the first subject that the attack can look into.
    """
    index = plan.batches[0][0]
    sample = plan.dataset[index]
    known = plan.task.labels if isinstance(plan.task, Classification) else LabelMap()
    names = list(known.names)
    clean = load_input(plan.pipeline, sample)
    shown = [_shown(None, clean, subjects, plan, names, sample)]
    for group in plan.groups[1:]:
        spec, noise = group.spec, group.noise
        if spec is None:
            continue
        rng = sample_generator(plan.seed, spec, sample.id)
        try:
            if isinstance(noise, Corruption):
                pixels = (clean.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
                changed = to_input(Picture(noise.corrupt(pixels, rng=rng), pixels.shape[:2]))
            elif isinstance(noise, Attack):
                victim = next((v for s in subjects for v in [victim_of(group, s)[0]] if v is not None), None)
                if victim is None:
                    continue
                labels = torch.tensor([sample.label + known.background])
                changed = noise.perturb(victim, clean[None], labels, rng=[rng]).inputs[0]
            elif isinstance(noise, SystemNoise) and sample.encoded is not None:
                changed = to_input(load(noise.alter(System(plan.pipeline)).pipeline, sample))
            else:
                continue
        except (NotApplicable, NoNoise):
            continue
        if not torch.equal(changed, clean):
            shown.append(_shown(spec, changed, subjects, plan, names, sample))
    return shown


def _shown(
    spec: Any, tensor: Tensor, subjects: Sequence[SweptSubject], plan: Plan, names: list[str], sample: Sample
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "noise": spec.name if spec else None,
        "option": spec.option if spec else None,
        "severity": spec.severity if spec else None,
        "png": _png(tensor),
        "label": names[sample.label] if sample.label < len(names) else str(sample.label),
    }
    for subject in subjects:
        outputs = subject.predictor(tensor[None])
        answer = plan.task.answer(outputs, [sample], ())["answer"][0].as_py()
        row[f"{subject.name}_answer"] = names[answer] if answer < len(names) else str(answer)
    return row


def _png(tensor: Tensor) -> bytes:
    pixels = (tensor.detach().permute(1, 2, 0).clamp(0, 1).numpy() * 255).round().astype(np.uint8)
    image = Image.fromarray(pixels)
    if max(image.size) > 256:
        image.thumbnail((256, 256))
    kept = io.BytesIO()
    image.save(kept, "PNG")
    return kept.getvalue()
