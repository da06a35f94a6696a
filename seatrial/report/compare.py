"""Two runs compared sample by sample: what differs, how sure that is, and which samples turned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from seatrial.core.chance import generator
from seatrial.core.noise import NoiseSpec
from seatrial.metrics.accuracy import agreement
from seatrial.metrics.intervals import paired_difference
from seatrial.metrics.joining import column, joined
from seatrial.report.compare_page import compare_page
from seatrial.report.subject import named
from seatrial.report.wording import finite, noise_title

MOST_FLIPPED = 50
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Question:
    """What two runs can both have answered: a variant on a target, under a noise or, with None, on clean data."""

    variant: str
    target: str
    noise: NoiseSpec | None = None


Records = Mapping[Question, pa.Table]
"""Per-sample records of a run, those of classification: `sample`, `label`, `answer`, `correct`."""


def compare(
    result_a: Mapping[str, Any],
    result_b: Mapping[str, Any],
    records_a: Records,
    records_b: Records,
    *,
    seed: int = 0,
) -> tuple[str, dict[str, Any]]:
    """Return two runs compared, as an HTML page and as a mapping that JSON can hold; B minus A throughout.

    Each question that both runs answered is paired by sample id. The mapping has `a` and `b` (names), `pairs` (with
    `variant`, `target`, `noise`, `metric`, `a`, `b`, `difference`, the ends `low` and `high` of its 95 % interval,
    `bootstrap_low`, `bootstrap_high`, `drop_at_most`, `n`, `left_out`, `gained`, `lost`, `agreement`,
    `flipped_total` and `flipped`, at most 50 samples whose verdict turned), `latency` (`variant`, `target`, `a`, `b`
    in milliseconds, `speedup`), `only_a`, `only_b` (questions that one run answered) and `warnings`.

    Raises BadInput where a table lacks a column or holds a sample twice. Tables without a common sample are named in
    `warnings`.
    """
    pairs, warnings = [], _warnings(result_a, result_b)
    for question in records_a:
        if question not in records_b:
            continue
        a, b = records_a[question], records_b[question]
        if not set(column(a, "sample")) & set(column(b, "sample")):
            warnings.append(f"{_said(question)}: no sample in common")
            continue
        pair = _pair(question, a, b, seed)
        if pair["left_out"]:
            warnings.append(f"{_said(question)}: {pair['left_out']} samples are in one run only and were left out")
        pairs.append(pair)
    comparison = {
        "a": named(result_a.get("model")),
        "b": named(result_b.get("model")),
        "pairs": pairs,
        "latency": _latency(result_a, result_b),
        "only_a": [_said(question) for question in records_a if question not in records_b],
        "only_b": [_said(question) for question in records_b if question not in records_a],
        "warnings": warnings,
    }
    return compare_page(comparison, result_a, result_b), comparison


def _said(question: Question) -> str:
    noise = noise_title(question.noise) if question.noise else "clean"
    return f"{question.variant} on {question.target}, {noise}"


def _pair(question: Question, a: pa.Table, b: pa.Table, seed: int) -> dict[str, Any]:
    left, right = joined(a, b)
    correct_a, correct_b = column(a, "correct")[left], column(b, "correct")[right]
    rng = generator(seed, "compare", _said(question))
    difference = paired_difference(correct_a, correct_b, rng=rng, confidence=CONFIDENCE)
    turned = (correct_a != correct_b).nonzero()[0]
    samples, labels = column(a, "sample")[left], column(a, "label")[left]
    answers_a, answers_b = column(a, "answer")[left], column(b, "answer")[right]
    noise = question.noise
    return {
        "variant": question.variant,
        "target": question.target,
        "noise": None
        if noise is None
        else {
            "family": noise.family,
            "name": noise.name,
            "option": noise.option,
            "norm": noise.norm,
            "severity": noise.severity,
        },
        "title": noise_title(noise) if noise else "clean",
        "metric": "top1",
        "a": difference.before,
        "b": difference.after,
        "difference": difference.difference,
        "low": difference.low,
        "high": difference.high,
        "bootstrap_low": difference.bootstrap.low,
        "bootstrap_high": difference.bootstrap.high,
        "drop_at_most": difference.drop_at_most,
        "n": difference.n,
        "left_out": len(a) + len(b) - 2 * len(left),
        "gained": difference.gained,
        "lost": difference.lost,
        "agreement": agreement(a, b),
        "flipped_total": len(turned),
        "flipped": [
            {
                "sample": str(samples[i]),
                "label": int(labels[i]),
                "a": int(answers_a[i]),
                "b": int(answers_b[i]),
                "turned": "right" if correct_b[i] else "wrong",
            }
            for i in turned[:MOST_FLIPPED]
        ],
    }


def _latency(result_a: Mapping[str, Any], result_b: Mapping[str, Any]) -> list[dict[str, Any]]:
    def medians(result: Mapping[str, Any]) -> dict[tuple[str, str], float]:
        found = {}
        for row in result.get("variants") or ():
            median = finite((row.get("latency_ms") or {}).get("median"))
            if median:
                found[str(row["name"]), str(row["target"])] = median
        return found

    a, b = medians(result_a), medians(result_b)
    return [
        {"variant": key[0], "target": key[1], "a": a[key], "b": b[key], "speedup": a[key] / b[key]}
        for key in a
        if key in b
    ]


def _warnings(result_a: Mapping[str, Any], result_b: Mapping[str, Any]) -> list[str]:
    """Say where the two runs asked different questions, so that a difference may have another cause."""
    found = []
    for part in ("data", "calibration"):
        a, b = result_a.get(part), result_b.get(part)
        digests = [p.get("digest") if isinstance(p, Mapping) else p for p in (a, b)]
        if digests[0] != digests[1]:
            found.append(f"the runs have different {part}: {named(a) or 'unnamed'} and {named(b) or 'unnamed'}")
    machines = [m if isinstance(m := result.get("machine"), Mapping) else {} for result in (result_a, result_b)]
    for key, what in (("cpu", "processors"), ("threads", "numbers of threads"), ("libraries", "library versions")):
        if machines[0].get(key) != machines[1].get(key):
            found.append(f"the runs used different {what}, so their latencies are not alike")
    return found
