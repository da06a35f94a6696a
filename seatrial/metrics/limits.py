"""Limits that a user states over the figures of a trial: `w8a8.top1 < float.top1 - 1%`."""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Iterable, Mapping
from typing import Any

from seatrial.errors import BadInput, unknown_name

Values = Mapping[str, Mapping[str, float | None]]
"""Figures by variant (`w8a8`, `w8a8@openvino`) and metric (`top1`, `latency_ms`)."""

MOST_CHARACTERS = 1000
_PLAIN = ("value", "top1", "agreement", "agreement_simulated", "size_bytes")
_METRICS = (*_PLAIN, "latency_ms", "latency_ms_p10", "latency_ms_p90")

_TOKEN = re.compile(
    r"""\s*(?:
    (?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?P<percent>\s*%)?(?![\w.])
    |(?P<word>and|or|not)(?![\w@.:-])
    |(?P<name>[A-Za-z_][\w:-]*(?:@[A-Za-z_][\w:-]*)?\.[A-Za-z_]\w*)(?![\w@.])
    |(?P<sign><=|>=|==|!=|<|>|\+|-|\*|/|\(|\))
    )""",
    re.VERBOSE | re.ASCII,
)
_ARITHMETIC = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
_COMPARISON = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_WANTED = "a condition over variant.metric, such as w8a8.top1 < float.top1 - 1%"


def evaluate_limit(expression: str, values: Values) -> bool:
    """Tell whether a condition holds over the figures of a trial.

    The language: `variant.metric` or `variant@target.metric`, numbers, percentages (`1%` is 0.01), `+ - * /`,
    comparisons (also chained), `and`, `or`, `not` and parentheses. Every name is looked up, also where `and` or
    `or` would not need it.

    Raises BadInput for anything else, an unknown variant or metric (with the nearest match), a figure that is absent
    (null), and a division by zero.
    """
    names, text = _translated(expression)
    figures = {f"_{i}": _figure(name, values, expression) for i, name in enumerate(names)}
    try:
        return _condition(ast.parse(text, mode="eval").body, figures, expression)
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise _refused(expression, _WANTED, "check operators and parentheses") from error
    except ZeroDivisionError as error:
        raise _refused(expression, "a divisor other than 0", "compare products instead of quotients") from error
    except OverflowError as error:
        raise _refused(expression, "numbers of a usual size", "write smaller numbers") from error


def check_limit(expression: str, noises: Iterable[str]) -> None:
    """Refuse a condition that no trial could answer, before one is run.

    `noises` are the families and names that may be named. Variants are known only afterwards. Raises BadInput as
    `evaluate_limit` does.
    """
    groups = [noise.replace("-", "_") for noise in noises]
    metrics = [*_METRICS, *groups, *(f"{group}_worst" for group in groups)]
    names, _ = _translated(expression)
    for name in names:
        metric = name.rpartition(".")[2]
        if metric not in metrics:
            raise unknown_name("metric", metric, metrics)
    # Any figures do for the grammar, and different ones divide.
    made_up = {name: 1.0 + math.sqrt(i + 2) for i, name in enumerate(names)}
    values: dict[str, dict[str, float | None]] = {}
    for name, figure in made_up.items():
        variant, _, metric = name.rpartition(".")
        values.setdefault(variant, {})[metric] = figure
    evaluate_limit(expression, values)


def limit_values(result: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """Return the figures of a trial (its JSON) that a limit may name, by variant and metric.

    A variant is listed as `name@target`, and as `name` too where that is unmistakable: it runs on one target only,
    the simulation (`torch`) not counted. Metrics: `value`, `top1`, `agreement`, `agreement_simulated`, `size_bytes`,
    `latency_ms` (median) with `latency_ms_p10` and `latency_ms_p90`, and, for each family and each noise, the mean
    over its finished cells (`attack`, `pgd`) and the smallest (`attack_worst`, `pgd_worst`), all null where absent.
    """
    found: dict[str, dict[str, float | None]] = {}
    homes: dict[str, list[str]] = {}
    for variant in result.get("variants") or ():
        latency = variant.get("latency_ms") or {}
        figures = {key: variant.get(key) for key in _PLAIN}
        figures |= {"latency_ms": latency.get("median")}
        figures |= {f"latency_ms_{key}": latency.get(key) for key in ("p10", "p90")}
        figures |= _noise_figures(variant.get("noise") or ())
        full = f"{variant['name']}@{variant['target']}"
        found[full] = figures
        homes.setdefault(variant["name"], []).append(full)
    for name, full_names in homes.items():
        deployed = [full for full in full_names if not full.endswith("@torch")] or full_names
        if len(deployed) == 1:
            found[name] = found[deployed[0]]
    return found


def _noise_figures(cells: Any) -> dict[str, float | None]:
    groups: dict[str, list[float]] = {}
    for cell in cells:
        for group in {cell["family"], cell["name"]}:
            done = groups.setdefault(group.replace("-", "_"), [])
            if cell.get("status") == "done" and cell.get("value") is not None:
                done.append(cell["value"])
    means = {group: math.fsum(done) / len(done) if done else None for group, done in groups.items()}
    return means | {f"{group}_worst": min(done, default=None) for group, done in groups.items()}


def _refused(expression: str, wanted: str, do: str) -> BadInput:
    shown = expression if len(expression) <= 80 else expression[:77] + "..."
    return BadInput(f"the limit {shown!r}", wanted, do)


def _translated(expression: str) -> tuple[list[str], str]:
    """Return the names in order, and the expression as Python with `_0`, `_1`, ... in their places."""
    if len(expression) > MOST_CHARACTERS:
        raise _refused(expression, f"at most {MOST_CHARACTERS} characters", "state a shorter limit")
    names: list[str] = []
    parts: list[str] = []
    position, text = 0, expression.rstrip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if not match:
            rest = text[position:].lstrip()
            raise _refused(expression, _WANTED, f"check it from {rest[:20]!r} on")
        if match["number"]:
            number = float(match["number"]) / (100 if match["percent"] else 1)
            if not math.isfinite(number):
                raise _refused(expression, "numbers of a usual size", f"write a smaller number than {match['number']}")
            parts.append(repr(number))
        elif match["name"]:
            parts.append(f"_{len(names)}")
            names.append(match["name"])
        else:
            parts.append(match["word"] or match["sign"])
        position = match.end()
    if not parts:
        raise BadInput("an empty limit", _WANTED, "state one or leave the option out")
    return names, " ".join(parts)


def _figure(name: str, values: Values, expression: str) -> float:
    variant, _, metric = name.rpartition(".")
    if variant not in values:
        targets = [full for full in values if full.startswith(f"{variant}@")]
        if targets:
            raise BadInput(
                f"'{variant}', which runs on several targets", "one of them", f"write {' or '.join(targets)}"
            )
        raise unknown_name("variant", variant, values)
    if metric not in values[variant]:
        raise unknown_name(f"metric of {variant}", metric, values[variant])
    figure = values[variant][metric]
    if figure is None or not math.isfinite(figure):
        raise _refused(expression, f"a figure for {name}, which this run did not measure", "measure it or drop it")
    return float(figure)


def _condition(node: ast.expr, figures: Mapping[str, float], expression: str) -> bool:
    match node:
        case ast.BoolOp(op=kind, values=parts):
            held = [_condition(part, figures, expression) for part in parts]
            return all(held) if isinstance(kind, ast.And) else any(held)
        case ast.UnaryOp(op=ast.Not(), operand=part):
            return not _condition(part, figures, expression)
        case ast.Compare(left=left, ops=kinds, comparators=others):
            sides = [_number(side, figures, expression) for side in (left, *others)]
            return all(_COMPARISON[type(kind)](a, b) for kind, a, b in zip(kinds, sides, sides[1:]))
    raise _refused(expression, _WANTED, "compare it with something: < <= > >= == !=")


def _number(node: ast.expr, figures: Mapping[str, float], expression: str) -> float:
    match node:
        case ast.Constant(value=float(number)):
            return number
        case ast.Name(id=name):
            return figures[name]
        case ast.UnaryOp(op=ast.USub(), operand=part):
            return -_number(part, figures, expression)
        case ast.UnaryOp(op=ast.UAdd(), operand=part):
            return _number(part, figures, expression)
        case ast.BinOp(left=left, op=kind, right=right) if type(kind) in _ARITHMETIC:
            value = _ARITHMETIC[type(kind)](_number(left, figures, expression), _number(right, figures, expression))
            if not math.isfinite(value):
                raise OverflowError
            return value
    raise _refused(expression, _WANTED, "compare numbers only; put conditions beside each other with and, or")
