"""What the page about a search over precisions says of its figures: names of precisions, ratios, the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from seatrial.report.intervals import Reach
from seatrial.report.marks import COLORS
from seatrial.report.wording import (
    ABSENT,
    MINUS,
    TIMES,
    change,
    change_span,
    figure,
    finite,
    is_share,
    metric_name,
    milliseconds,
    significant,
)

FLOAT = "float"
INT8 = "w8a8"
_SETTINGS = {"f32": "float32"}
_INTEGER_COLORS = (COLORS[0], COLORS[3], COLORS[2], COLORS[4], COLORS[5])
Part = Mapping[str, Any]


def part(holder: object, key: str) -> Part:
    """Return a part of a result, empty where it is absent."""
    found = holder.get(key) if isinstance(holder, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def reach(figures: object) -> Reach:
    """Return the value, the low and the high end of `{"value", "low", "high"}`, None for each that is absent."""
    held = figures if isinstance(figures, Mapping) else {}
    return finite(held.get("value")), finite(held.get("low")), finite(held.get("high"))


def median_ms(holder: object) -> float | None:
    """Return the median of the latency of a baseline or the chosen network."""
    return finite(part(holder, "latency_ms").get("median"))


def factor(value: float | None) -> str:
    """Return a ratio of two times with three significant digits: `1.25×`."""
    return ABSENT if value is None else f"{significant(value)}{TIMES}"


def float_name(setting: object) -> str:
    """Return what a float operator runs in under a setting of the runtime: `bf16`, `float32`, `float` if unknown."""
    return FLOAT if setting is None else _SETTINGS.get(str(setting), str(setting))


def uniform_name(groups: Mapping[str, Any], setting: object) -> str | None:
    """Return the name of a choice with one precision for every group (`bf16`, `w8a8+bf16`), None for a mixture."""
    if len(used := {str(precision) for precision in groups.values()}) != 1:
        return None
    (only,) = used
    if only == FLOAT:
        return float_name(setting)
    return only if float_name(setting) in (FLOAT, "float32") else f"{only}+{setting}"


def precisions(groups: Sequence[Part]) -> list[str]:
    """Return every precision that groups have or could have, by name, float last."""
    found = {str(group["precision"]) for group in groups}
    found |= {str(name) for group in groups for key in ("latency_ms", "size_bytes") for name in part(group, key)}
    integers = sorted(found - {FLOAT}, key=lambda name: (name != INT8, name))
    return [*integers, *([FLOAT] if FLOAT in found else [])]


def precision_colors(names: Sequence[str]) -> dict[str, str]:
    """Return the color of each precision: the first integer precision blue, float always orange."""
    integers = [name for name in names if name != FLOAT]
    return {name: _INTEGER_COLORS[i % len(_INTEGER_COLORS)] for i, name in enumerate(integers)} | {FLOAT: COLORS[1]}


def choice(result: Part) -> dict[str, str]:
    """Return the precision of each group of the chosen network."""
    return {str(group["name"]): str(group["precision"]) for group in result["groups"]}


def chosen_name(result: Part) -> str:
    """Return `mixed`, or the name of the uniform precision that was kept."""
    if not result["chosen"]["is_uniform"]:
        return "mixed"
    chosen = result["chosen"]
    if chosen["name"] not in (None, result["method"]):
        return str(chosen["name"])
    return uniform_name(choice(result), chosen["setting"]) or str(chosen["best_uniform"] or "uniform")


def _percent(ratio: float) -> str:
    return f"{100 * abs(1 - ratio):.1f} %"


def _signed(ratio: float) -> str:
    text = f"{100 * abs(ratio - 1):.1f}"
    return ("±" if float(text) == 0 else MINUS if ratio < 1 else "+") + text


def sure(ratio: object) -> bool:
    """Tell whether the interval of a ratio leaves out 1; without an interval, whether the ratio does."""
    value, low, high = reach(ratio)
    if low is None or high is None:
        return value is not None and value != 1
    return high < 1 or low > 1


def compared(ratio: object) -> str:
    """Return a ratio of times as a change of time: `18.4 % less time than`, '' where it is absent."""
    value = reach(ratio)[0]
    if value is None:
        return ""
    if not sure(ratio):
        return "as much time, within the noise, as"
    return f"{_percent(value)} {'less' if value < 1 else 'more'} time than"


def interval(ratio: object) -> str:
    """Return the interval of a ratio as changes of time with the number of rounds, '' where it is absent."""
    _, low, high = reach(ratio)
    if low is None or high is None:
        return ""
    n = finite(ratio.get("n")) if isinstance(ratio, Mapping) else None
    rounds = f", {n:,.0f} paired rounds" if n is not None else ""
    return f" (95 % interval {_signed(low)} to {_signed(high)} %{rounds})"


def title(result: Part) -> str:
    """Return the verdict in one line: `4.16 ms in mixed precision, 18.4 % less time than bf16`."""
    chosen = result["chosen"]
    time = median_ms(chosen)
    name = chosen_name(result)
    said = f"{milliseconds(time)} ms in " if time is not None else "In "
    if chosen["is_uniform"]:
        return f"{said}{name}: {_kept(result, name)}"
    told = compared(chosen["ratio_vs_best_uniform"])
    said += "mixed precision"
    return f"{said}, {told} {chosen['best_uniform']}" if told and chosen["best_uniform"] else said


def _kept(result: Part, name: str) -> str:
    if name == result["chosen"]["best_uniform"]:
        bound = any(value is not None for key, value in result["bounds"].items() if str(key).startswith("max_"))
        return f"no mixture{' within the bounds' if bound else ''} was faster by more than the noise"
    return "one precision for every operator"


def sentences(result: Part) -> list[str]:
    """Return what stands under the verdict, in plain text."""
    chosen, said = result["chosen"], []
    best = chosen["best_uniform"]
    name = chosen_name(result)
    who = f"Uniform {name}" if chosen["is_uniform"] else "The chosen network"
    told = []
    against_best, against_int8 = chosen["ratio_vs_best_uniform"], chosen["ratio_vs_int8"]
    if best not in (None, name) and compared(against_best):
        told.append(f"{compared(against_best)} {best}, the best uniform precision{interval(against_best)}")
    # Where an integer network is the best uniform one, or was chosen, the figure would say the same twice.
    if not any(str(other).startswith(INT8) for other in (best, name)) and compared(against_int8):
        told.append(f"{compared(against_int8)} uniform int8{interval(against_int8)}")
    if told:
        said.append(f"{who} takes {', and '.join(told)}.")
    facts = []
    agreement, value = finite(chosen["agreement"]), finite(chosen["value"])
    if agreement is not None:
        facts.append(f"it answers as float does on {figure(agreement, 'agreement')} of the samples")
    metric = str(result["metric"] or "value")
    if value is not None:
        facts.append(f"its {metric_name(metric)} is {figure(value, metric)}{_difference(result, metric)}")
    if facts:
        said.append(f"{facts[0][0].upper()}{', and '.join(facts)[1:]}.")
    return said


def _difference(result: Part, metric: str) -> str:
    chosen = result["chosen"]
    value, low, high = reach(chosen["accuracy_difference"])
    if value is None or (chosen["is_uniform"] and chosen_name(result) == chosen["best_uniform"]):
        return ""
    points = " points" if is_share(metric) else ""
    reaches = change_span(low, high, metric)
    against = f" against {chosen['best_uniform']}" if chosen["best_uniform"] is not None else ""
    return f", {change(value, metric)}{points}{against}" + (f" (95 % interval {reaches})" if reaches else "")


def saving_ms(group: Part) -> float | None:
    """Return what a group's precision saves against the cheapest other one, None where either cost is unknown."""
    costs = {str(name): finite(cost) for name, cost in part(group, "latency_ms").items()}
    mine = costs.pop(str(group["precision"]), None)
    others = [cost for cost in costs.values() if cost is not None]
    return None if mine is None or not others else min(others) - mine
