"""A made-up result of `seatrial quantize --method ohq`, for the tests of whatever reads one."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import numpy as np

_PER_BLOCK = (
    ("attn.qkv/linear#0", "linear", 0.050, 110_592),
    ("attn/scaled_dot_product#0", "matmul", 0.022, 0),
    ("attn/scaled_dot_product#1", "matmul", 0.020, 0),
    ("attn.proj/linear#0", "linear+add", 0.020, 36_864),
    ("mlp.fc1/linear#0", "linear", 0.071, 147_456),
    ("mlp.fc2/linear#0", "linear+add", 0.066, 147_456),
)
INTEGER, FLOAT = "w8a8", "float"


def latency(median_ms: float, runs: int = 200) -> dict[str, Any]:
    """Return a latency object with a plausible spread."""
    spread = {"p10": round(0.978 * median_ms, 4), "p90": round(1.041 * median_ms, 4)}
    return {"median": median_ms, **spread, "runs": runs, "batch": 1, "threads": 2}


def ratio(value: float, half: float = 0.012, n: int = 40) -> dict[str, Any]:
    """Return a ratio object with its interval."""
    return {"value": value, "low": round(value - half, 4), "high": round(value + half, 4), "n": n}


def _groups(blocks: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    listed = [("patch_embed.proj/conv2d#0", "conv2d", 0.11, 147_456)]
    listed += [(f"blocks.{i}.{name}", kind, ms, size) for i in range(blocks) for name, kind, ms, size in _PER_BLOCK]
    listed.append(("head/linear#0", "linear", 0.03, 192_000))
    found = []
    for name, kind, float_ms, size in listed:
        gain = 0.55 if "mlp" in name or "qkv" in name else 1.25 if kind == "matmul" else 0.95
        costs = {INTEGER: float_ms * gain * rng.uniform(0.93, 1.07), FLOAT: float_ms * rng.uniform(0.95, 1.05)}
        costs = {precision: round(float(cost), 5) for precision, cost in costs.items()}
        chosen = INTEGER if costs[INTEGER] < costs[FLOAT] else FLOAT
        operators = [name, name.replace("/linear#0", "/add#0")] if "+" in kind else [name]
        found.append(
            {
                "name": name,
                "operators": operators,
                "kind": kind,
                "precision": chosen,
                "latency_ms": costs,
                "size_bytes": {INTEGER: size, FLOAT: 4 * size},
                "sensitivity": {INTEGER: round(float(rng.lognormal(-8.5, 1.0)), 9)},
            }
        )
    whole = sum(group["latency_ms"][group["precision"]] for group in found)
    for group in found:
        group["share"] = round(group["latency_ms"][group["precision"]] / whole, 5)
    return found


def _edges(groups: list[dict[str, Any]], rng: np.random.Generator) -> list[dict[str, Any]]:
    return [
        {"producer": one["name"], "reader": other["name"], "pair": list(pair), "latency_ms": round(float(cost), 5)}
        for one, other in pairwise(groups)
        for pair, cost in zip(((INTEGER, FLOAT), (FLOAT, INTEGER)), rng.gamma(2.0, 0.004, 2))
    ]


def _front(groups: list[dict[str, Any]], rng: np.random.Generator) -> list[dict[str, Any]]:
    """Return choices from all float to all integers, the ones that save most per nat first, and the chosen one."""

    def point(choice: dict[str, str], setting: str, measured: bool) -> dict[str, Any]:
        factor = 1.0 if setting == "bf16" else 2.4
        time = 1.1 * factor + sum(
            g["latency_ms"][choice[g["name"]]] * (factor if choice[g["name"]] == FLOAT else 1.0) for g in groups
        )
        nats = sum(g["sensitivity"][INTEGER] for g in groups if choice[g["name"]] == INTEGER)
        return {
            "setting": setting,
            "predicted_ms": round(time, 4),
            "measured_ms": round(time * float(rng.normal(1, 0.015)), 4) if measured else None,
            "sensitivity": round(nats, 7),
            "value": round(0.716 - 0.35 * nats + float(rng.normal(0, 0.0015)), 4) if measured else None,
            "agreement": round(1 - 0.8 * nats - 0.002, 4) if measured else None,
            "integer_groups": sum(p == INTEGER for p in choice.values()),
            "groups": choice,
        }

    def saved(group: dict[str, Any]) -> float:
        return (group["latency_ms"][FLOAT] - group["latency_ms"][INTEGER]) / group["sensitivity"][INTEGER]

    order = [g["name"] for g in sorted(groups, key=saved, reverse=True)]
    names = [g["name"] for g in groups]
    chosen = {g["name"]: g["precision"] for g in groups}
    found = []
    for setting in ("bf16", "f32"):
        for i, count in enumerate(np.linspace(0, len(order), 10).astype(int)):
            inside = set(order[:count])
            choice = {name: INTEGER if name in inside else FLOAT for name in names}
            found.append(
                point(choice, setting, measured=count in (0, len(order)) or (setting == "bf16" and i % 2 == 0))
            )
    found.append(point(chosen, "bf16", measured=True))
    return found


def _steps(seconds: float, rng: np.random.Generator) -> list[dict[str, Any]]:
    counts = {"uniform": 4, "flip": 60, "validation": 20, "program": 12, "polish": 30}
    levels = {"uniform": 0.9, "flip": 0.95, "validation": 0.85, "program": 0.62, "polish": 0.61}
    widths = {"uniform": 0.1, "flip": 0.1, "validation": 0.12, "program": 0.01, "polish": 0.012}
    found, best, at = [], 1.0, 0.0
    for step, count in counts.items():
        for _ in range(count):
            at += seconds / sum(counts.values()) * float(rng.uniform(0.8, 1.2))
            told = max(0.598, levels[step] + widths[step] * float(rng.normal()))
            best = min(best, told)
            figures = {"ratio": round(told, 4), "best": round(best, 4)}
            found.append({"second": round(at, 2), "step": step, "setting": "bf16", **figures})
    return found


def sample_ohq(*, blocks: int = 12, simulated: str | None = None, seed: int = 0) -> dict[str, Any]:
    """Return a result like that of DeiT-Tiny with `blocks` blocks: 6 groups a block and 2 more, 12 blocks making 74."""
    rng = np.random.default_rng(seed)
    groups = _groups(blocks, rng)
    sizes = {precision: sum(g["size_bytes"][precision] for g in groups) for precision in (INTEGER, FLOAT)}
    own = sum(g["size_bytes"][g["precision"]] for g in groups)
    baselines = [
        ("float32", 13.62, sizes[FLOAT], 0.7163, 1.0, 3.274),
        ("bf16", 5.098, sizes[FLOAT], 0.7160, 0.9942, 1.2256),
        ("w8a8", 6.871, sizes[INTEGER], 0.7081, 0.9575, 1.6517),
        ("w8a8+bf16", 5.644, sizes[INTEGER], 0.7079, 0.9569, 1.3568),
    ]
    front = _front(groups, rng)
    predicted = rng.uniform(4.1, 7.4, 20)
    tests = [
        {"setting": "bf16", "predicted_ms": round(float(p), 4), "measured_ms": round(float(p * m), 4)}
        for p, m in zip(predicted, rng.normal(1, 0.025, 20))
    ]
    bits = {f"{g['name']}:{slot}": 8 for g in groups if g["precision"] == INTEGER for slot in ("in", "weight", "out")}
    return {
        "model": {"name": "deit_tiny_patch16_224", "source": "timm", "digest": "sha256:5fa1c03e"},
        "machine": {
            "cpu": "A made-up server processor with AMX",
            "cores": 2,
            "threads": 2,
            "instruction_sets": ["avx2", "avx512_vnni", "amx_bf16", "amx_int8"],
            "memory_bytes": 16_600_000_000,
            "system": "Linux 6.8",
            "gpus": [],
            "libraries": {"torch": "2.12.1", "openvino": "2026.4.1"},
        },
        "target": "openvino",
        "method": "ohq",
        "quantizer": "nearest",
        "simulated": simulated,
        "bits": "mixed",
        "size_bytes": own,
        "latency_ms": latency(4.157),
        "metric": "top1",
        "value": 0.7142,
        "agreement": 0.9838,
        "agreement_simulated": 0.9991,
        "files": ["deit_tiny.xml", "deit_tiny.bin", "result.json"],
        "seconds": 318.4,
        "warnings": ["the clock of the processor changed during the search"],
        "baselines": [
            {
                "name": name,
                "latency_ms": latency(ms),
                "size_bytes": size,
                "value": value,
                "agreement": agreement,
                "ratio_vs_chosen": ratio(against),
            }
            for name, ms, size, value, agreement, against in baselines
        ],
        "chosen": {
            "name": "ohq",
            "setting": "bf16",
            "latency_ms": latency(4.157),
            "ratio_vs_int8": ratio(0.6054),
            "ratio_vs_best_uniform": ratio(0.8159),
            "best_uniform": "bf16",
            "value": 0.7142,
            "agreement": 0.9838,
            "accuracy_difference": {"value": -0.0018, "low": -0.0091, "high": 0.0055, "n": 800},
            "bits": bits,
            "is_uniform": False,
        },
        "additivity": {
            "spearman": 0.9714,
            "mape": 0.0213,
            "repeat_spread": 0.0087,
            "trusted": True,
            "assignments": tests,
        },
        "pareto": front,
        "groups": groups,
        "edges": _edges(groups, rng),
        "energy": {"counter": None, "baselines": {"float32": None, "bf16": None, "w8a8": None, "ohq": None}},
        "search": {"measured": 126, "seconds": 300.6, "ended": "time budget", "steps": _steps(300.0, rng)},
        "bounds": {
            "max_latency_ms": None,
            "max_size_mb": None,
            "max_energy_mj": None,
            "max_drop": 0.01,
            "time_budget_s": 300,
        },
    }


def kept_ohq(*, blocks: int = 5) -> dict[str, Any]:
    """Return a result whose uniform precision was kept: bf16 for every group."""
    result = sample_ohq(blocks=blocks)
    for group in result["groups"]:
        group["precision"] = FLOAT
    bf16 = result["baselines"][1]
    figures = {key: bf16[key] for key in ("latency_ms", "value", "agreement")}
    result["chosen"] |= {
        **figures,
        "ratio_vs_int8": ratio(0.742),
        "ratio_vs_best_uniform": ratio(1.0, 0.0),
        "accuracy_difference": {"value": 0.0, "low": 0.0, "high": 0.0, "n": 800},
        "bits": {},
        "is_uniform": True,
    }
    result |= {**figures, "size_bytes": bf16["size_bytes"]}
    return result


def unknown_ohq(*, blocks: int = 5) -> dict[str, Any]:
    """Return a result with None for every figure that may be unknown."""
    result = sample_ohq(blocks=blocks)
    result |= dict.fromkeys(("metric", "value", "agreement", "agreement_simulated", "simulated"))
    result |= {"warnings": [], "files": []}
    for row in result["baselines"]:
        row |= dict.fromkeys(("value", "agreement"))
    unknown = ("value", "agreement", "accuracy_difference", "setting", "ratio_vs_int8", "ratio_vs_best_uniform")
    result["chosen"] |= dict.fromkeys((*unknown, "best_uniform"))
    result["additivity"] |= {**dict.fromkeys(("spearman", "mape", "repeat_spread", "trusted")), "assignments": []}
    for point in result["pareto"]:
        point |= dict.fromkeys(("setting", "measured_ms", "value", "agreement"))
    for group in result["groups"]:
        group["share"] = None
        group["latency_ms"] = dict.fromkeys(group["latency_ms"])
        group["sensitivity"] = dict.fromkeys(group["sensitivity"])
    for edge in result["edges"]:
        edge["latency_ms"] = None
    result["search"]["steps"] = []
    result["bounds"] = dict.fromkeys(result["bounds"])
    return result


def poisoned_ohq(result: dict[str, Any], attack: str) -> dict[str, Any]:
    """Return the result with an attack in every name that a file or a user may choose, references among them kept."""
    text = json.dumps(result)
    names = {group["name"] for group in result["groups"]} | set(result["chosen"]["bits"])
    names |= {operator for group in result["groups"] for operator in group["operators"]}
    for name in sorted(names, key=len, reverse=True):
        text = text.replace(f'"{name}"', json.dumps(name + attack))
    hostile = json.loads(text)
    for group in hostile["groups"]:
        group["kind"] += attack
    hostile["model"] = {key: value + attack for key, value in hostile["model"].items()}
    for key in ("target", "method", "quantizer", "bits", "metric"):
        hostile[key] += attack
    hostile["files"] = [file + attack for file in hostile["files"]]
    hostile["warnings"] = [warning + attack for warning in hostile["warnings"]]
    hostile["simulated"] = f"systolic{attack}"
    hostile["search"]["ended"] += attack
    for row in (*hostile["search"]["steps"], *hostile["additivity"]["assignments"], *hostile["pareto"]):
        row["setting"] += attack
    for step in hostile["search"]["steps"]:
        step["step"] += attack
    hostile["chosen"]["setting"] += attack
    hostile["chosen"]["best_uniform"] += attack
    for row in hostile["baselines"]:
        row["name"] += attack
    hostile["machine"]["libraries"] = {f"{k}{attack}": v + attack for k, v in hostile["machine"]["libraries"].items()}
    return hostile
