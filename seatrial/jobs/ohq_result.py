"""What a search found, as the JSON of `seatrial quantize --method ohq` and as tables."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from seatrial.core.chance import generator
from seatrial.core.recipe import FloatType
from seatrial.deploy.alternated import latency_of
from seatrial.deploy.machine import this_machine
from seatrial.errors import BadInput, LimitBroken
from seatrial.jobs.chip_search import INTEGERS, Candidate, ChipSearch, Searched, in_words
from seatrial.jobs.measured import Cells, Metric, score, score_name
from seatrial.jobs.operator_share import operator_shares
from seatrial.jobs.search_settings import SearchSettings
from seatrial.jobs.settings import Settings
from seatrial.jobs.subject import Subject
from seatrial.jobs.variants import SIMULATION
from seatrial.metrics.accuracy import agreement
from seatrial.metrics.intervals import median_interval, paired_difference
from seatrial.metrics.joining import column, joined
from seatrial.quant.assignment import FLOAT

_ERRORS = ("sqnr_db", "sqnr_db_before", "reader_sqnr_db", "reader_sqnr_db_before")
"""What a search does not look at: it judges groups of operators, not sites."""


@dataclass(frozen=True, eq=False)
class Judged:
    """What candidates answered on the evaluation data."""

    cells: Cells
    target: str
    metric: Metric | None

    def value(self, name: str) -> float | None:
        """Return the metric of a candidate (top-1 without one)."""
        records = self.cells.records(f"{name}@{self.target}")
        return None if records is None else score(records, self.metric)

    def drop(self, name: str) -> float:
        """Return how much lower the metric of a candidate is than that of the float network."""
        base = self.cells.records(f"float@{SIMULATION}")
        value = self.value(name)
        return float("inf") if base is None or value is None else score(base, self.metric) - value

    def agreement(self, name: str, target: str | None = None) -> float | None:
        """Return the share of samples that a candidate answers as the float network, or as its simulation, does."""
        records = self.cells.records(f"{name}@{self.target}")
        base = self.cells.records(f"float@{SIMULATION}" if target is None else f"{name}@{target}")
        return None if records is None or base is None else agreement(records, base)

    def difference(self, name: str, other: str, seed: int) -> dict[str, Any] | None:
        """Return the paired difference of accuracy between two candidates with its 95 % interval."""
        new, old = (self.cells.records(f"{one}@{self.target}") for one in (name, other))
        if new is None or old is None:
            return None
        left, right = joined(old, new)
        told = paired_difference(
            column(old, "correct")[left], column(new, "correct")[right], rng=generator(seed, "paired", name, other)
        )
        return {"value": told.difference, "low": told.low, "high": told.high, "n": told.n}


@dataclass(frozen=True, eq=False)
class Result:
    """The JSON, and the index of the candidate that is delivered."""

    data: dict[str, Any]
    index: int


def ohq_data(
    subject: Subject,
    settings: Settings,
    wishes: SearchSettings,
    search: ChipSearch,
    searched: Searched,
    candidates: list[Candidate],
    judged: Judged,
    rounds_ms: np.ndarray,
) -> Result:
    """Return the result. Of the candidates that keep the bounds it delivers the mixture where that is surely faster
    than each uniform one, else the fastest uniform one."""
    names = [one.name for one in candidates]
    medians = np.median(rounds_ms, axis=0)
    kept = [i for i, one in enumerate(candidates) if _keeps(one, float(medians[i]), judged, wishes)] or list(
        range(len(candidates))
    )
    uniform = [i for i in range(len(candidates)) if names[i] != "ohq"]
    base = min([i for i in uniform if i in kept] or uniform, key=lambda i: medians[i])
    index = base
    mixed = names.index("ohq") if "ohq" in names else None
    if mixed in kept and (base not in kept or median_interval(rounds_ms[:, mixed] / rounds_ms[:, base]).high < 1.0):
        index = mixed
    winner = candidates[index]
    integers = min((i for i in uniform if names[i].startswith(INTEGERS)), key=lambda i: medians[i])

    def latency(at: int) -> dict[str, Any]:
        return asdict(latency_of(rounds_ms[:, at], wishes.batch, settings.used_threads))

    def ratio(at: int, other: int) -> dict[str, Any]:
        ratios = rounds_ms[:, at] / rounds_ms[:, other]
        interval = median_interval(ratios)
        return {"value": float(np.median(ratios)), "low": interval.low, "high": interval.high, "n": len(ratios)}

    simulated = winner.artefact.settings.get("simulated")
    warnings = [*subject.warnings, *searched.notes]
    if mixed is None:
        warnings.append("no mixture within the bounds was measured in time: a uniform precision is kept")
    elif index != mixed:
        warnings.append("no mixture was faster than the best uniform precision by more than the noise: it is kept")
    rounds = winner.recipe.rounds if winner.recipe is not None else ()
    bits = {str(edit.site): 16 if isinstance(edit.grid, FloatType) else edit.grid.bits for edit in rounds}
    data: dict[str, Any] = {
        "model": {"name": subject.model.name, "source": subject.model.source, "digest": subject.model.digest},
        "machine": asdict(this_machine(settings.used_threads)),
        "target": search.target.name,
        "method": "ohq",
        "quantizer": settings.method,
        "simulated": simulated,
        "bits": "mixed" if winner.name == "ohq" else winner.name,
        "size_bytes": winner.artefact.size_bytes,
        "latency_ms": latency(index),
        "metric": score_name(judged.metric),
        "value": judged.value(winner.name),
        "agreement": judged.agreement(winner.name),
        "agreement_simulated": judged.agreement(winner.name, SIMULATION),
        "sites": [{"site": site, "bits": wide, **dict.fromkeys(_ERRORS)} for site, wide in bits.items()],
        "baselines": [
            {
                "name": candidates[i].name,
                "latency_ms": latency(i),
                "size_bytes": candidates[i].artefact.size_bytes,
                "value": judged.value(names[i]),
                "agreement": judged.agreement(names[i]),
                "ratio_vs_chosen": ratio(i, index),
            }
            for i in uniform
        ],
        "chosen": {
            "name": winner.name,
            "setting": winner.setting,
            "latency_ms": latency(index),
            "ratio_vs_int8": ratio(index, integers),
            "ratio_vs_best_uniform": ratio(index, base),
            "best_uniform": names[base],
            "value": judged.value(winner.name),
            "agreement": judged.agreement(winner.name),
            "accuracy_difference": judged.difference(winner.name, names[base], settings.seed),
            "bits": bits,
            "drop": judged.drop(winner.name) if judged.drop(winner.name) < float("inf") else None,
            "is_uniform": winner.name != "ohq",
        },
        "additivity": _additivity(searched, winner.setting),
        "pareto": _pareto(searched, candidates, judged),
        **_operators(search, searched, winner, settings.used_threads),
        "energy": {
            "counter": "the model" if simulated else None if searched.energy is None else searched.energy.name,
            "baselines": _energies(searched),
        },
        "search": {
            "measured": len(searched.steps),
            "seconds": searched.steps[-1]["second"] if searched.steps else 0.0,
            "ended": _ended(searched),
            "steps": list(searched.steps),
        },
        "bounds": {
            "max_latency_ms": wishes.max_latency_ms,
            "max_size_mb": wishes.max_size_mb,
            "max_energy_mj": wishes.max_energy_mj,
            "max_drop": wishes.max_drop,
            "time_budget_s": wishes.time_budget_s,
        },
        "warnings": warnings,
    }
    return Result(json.loads(json.dumps(data, allow_nan=False)), index)


def broken_bound(data: dict[str, Any], wishes: SearchSettings) -> Exception | None:
    """Return the error for a bound that the delivered network breaks: nothing that was measured keeps it."""
    median = data["latency_ms"]["median"]
    if wishes.max_latency_ms is not None and median > wishes.max_latency_ms:
        return BadInput(
            f"--max-latency-ms {wishes.max_latency_ms:g}",
            f"at least {median:.3g}, the fastest that was reached on {data['target']}; its files are written",
            "raise it, or take a smaller network",
        )
    megabytes = data["size_bytes"] / 1e6
    if wishes.max_size_mb is not None and megabytes > wishes.max_size_mb:
        return BadInput(
            f"--max-size-mb {wishes.max_size_mb:g}",
            f"at least {megabytes:.3g}, what the chosen files take; they are written",
            "raise it, or take a smaller network",
        )
    if wishes.max_drop is not None and data["chosen"]["drop"] is not None and data["chosen"]["drop"] > wishes.max_drop:
        return LimitBroken(
            f"--max-drop {wishes.max_drop:g}: the network that was kept loses {data['chosen']['drop']:.4f}"
        )
    return None


def write_tables(folder: Path, searched: Searched) -> list[Path]:
    """Write `latency.parquet`: what each group costs in each precision here, one row each; returns the file."""
    rows = []
    for setting, exploration in searched.explorations.items():
        if exploration.model is None:
            continue
        scale = searched.uniform.reference_ms(setting)
        for group in exploration.grouping.groups:
            for precision in exploration.search.precisions:
                rows.append(
                    {
                        "setting": setting,
                        "group": group.name,
                        "operators": list(group.operators),
                        "kind": group.kind,
                        "shapes": list(group.shapes),
                        "precision": precision,
                        "extra_ms": scale * exploration.model.group_cost(group.name, precision),
                        "sensitivity": 0.0
                        if precision == FLOAT
                        else exploration.sensitivity.get((group.name, precision)),
                    }
                )
    file = folder / "latency.parquet"
    schema = pa.schema(
        [
            ("setting", pa.string()),
            ("group", pa.string()),
            ("operators", pa.list_(pa.string())),
            ("kind", pa.string()),
            ("shapes", pa.list_(pa.string())),
            ("precision", pa.string()),
            ("extra_ms", pa.float64()),
            ("sensitivity", pa.float64()),
        ]
    )
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), file)
    return [file]


def _keeps(one: Candidate, median_ms: float, judged: Judged, wishes: SearchSettings) -> bool:
    drop = judged.drop(one.name) if wishes.max_drop is not None else 0.0
    return (
        (wishes.max_drop is None or drop <= wishes.max_drop)
        and (wishes.max_latency_ms is None or median_ms <= wishes.max_latency_ms)
        and (wishes.max_size_mb is None or one.artefact.size_bytes <= 1e6 * wishes.max_size_mb)
    )


def _ended(searched: Searched) -> str:
    if searched.interrupted:
        return "interrupted"
    return "finished" if all(one.converged for one in searched.explorations.values()) else "time budget"


def _additivity(searched: Searched, setting: str) -> dict[str, Any]:
    """Return how well the table foretold fresh choices: in the setting of the winner, else in the first searched."""
    exploration = searched.exploration_of(setting)
    told = exploration.additivity if exploration is not None else None
    pairs = []
    for name, one in searched.explorations.items():
        scale = searched.uniform.reference_ms(name)
        for foretold, measured in one.additivity.pairs if one.additivity is not None else ():
            pairs.append({"setting": name, "predicted_ms": scale * foretold, "measured_ms": scale * measured})
    return {
        "spearman": None if told is None else told.spearman,
        "mape": None if told is None else told.mape,
        "repeat_spread": None if exploration is None else exploration.repeat_spread,
        "trusted": False if told is None else told.trusted,
        "assignments": pairs,
    }


def _pareto(searched: Searched, candidates: list[Candidate], judged: Judged) -> list[dict[str, Any]]:
    delivered = {id(one.found): one.name for one in candidates if one.found is not None}
    points = []
    for setting, exploration in searched.explorations.items():
        if exploration.model is None:  # stopped before anything was fitted
            continue
        scale = searched.uniform.reference_ms(setting)
        known = {tuple(one.choice.values()): one for one in exploration.found.values()}
        for choice in (
            *(dict(s.choice) for s in exploration.front()),
            *(one.choice for one in exploration.fastest()[:8]),
        ):
            key = tuple(choice[group.name] for group in exploration.grouping.groups)
            found = known.get(key)
            name = delivered.get(id(found))
            points.append(
                {
                    "setting": setting,
                    "predicted_ms": scale * exploration.model.predict(choice),
                    "measured_ms": None if found is None else scale * found.reading.ratio,
                    "sensitivity": exploration.total_sensitivity(choice),
                    "value": None if name is None else judged.value(name),
                    "agreement": None if name is None else judged.agreement(name),
                    "integer_groups": sum(precision != FLOAT for precision in key),
                    "groups": dict(choice),
                }
            )
    return list({json.dumps([p["setting"], p["groups"]]): p for p in points}.values())


def _operators(search: ChipSearch, searched: Searched, winner: Candidate, threads: int) -> dict[str, Any]:
    """Return groups and edges in the setting of the winner, with the share of each group in the network's time."""
    exploration = searched.exploration_of(winner.setting)
    if exploration is None or exploration.model is None:
        return {"groups": [], "edges": []}
    scale = searched.uniform.reference_ms(winner.setting)
    shares = operator_shares(search.target, winner.artefact, exploration.grouping, threads)
    choice = winner.found.choice if winner.found is not None else None
    uniform = FLOAT if winner.recipe is None else winner.name.split("+")[0]
    groups = [
        {
            "name": group.name,
            "operators": list(group.operators),
            "kind": group.kind,
            "precision": choice[group.name] if choice else uniform,
            "share": shares.get(group.name),
            "latency_ms": {
                precision: scale * exploration.model.group_cost(group.name, precision)
                for precision in exploration.search.precisions
            },
            "size_bytes": dict.fromkeys(exploration.search.precisions),
            "sensitivity": {
                precision: exploration.sensitivity.get((group.name, precision))
                for precision in exploration.search.precisions
                if precision != FLOAT
            },
        }
        for group in exploration.grouping.groups
    ]
    edges = [
        {"producer": one, "reader": other, "pair": list(pair), "latency_ms": scale * ratio}
        for one, other, told in exploration.model.edge_costs()
        for pair, ratio in told.items()
        if abs(ratio) > 1e-6
    ]
    return {"groups": groups, "edges": edges}


def _energies(searched: Searched) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for setting, exploration in searched.explorations.items():
        for precision, one in exploration.uniform.items():
            name = setting if precision == FLOAT else in_words(precision, setting)
            found[name] = one.reading.energy_mj
    return found
