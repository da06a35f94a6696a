"""How figures are written for people: shares, points, times, sizes and ratios, in plain text."""

from __future__ import annotations

import math

from seatrial.core.noise import NoiseSpec

MINUS = "\N{MINUS SIGN}"
TIMES = "\N{MULTIPLICATION SIGN}"
ABSENT = "\N{EN DASH}"
SHARES = frozenset({"top1", "top5", "accuracy", "agreement", "ar", "wcar", "robust_accuracy", "mcq_accuracy"})
"""Metrics that are fractions, shown in percent; others are shown as they are."""

_METRICS = {"top1": "top-1", "top5": "top-5", "ar": "AR", "wcar": "WCAR", "robust_accuracy": "robust accuracy"}
_SIZES = ("B", "kB", "MB", "GB", "TB")


def finite(number: object) -> float | None:
    """Return a number as float, and None for anything else, booleans, infinities and NaN included."""
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        return None
    return float(number)


def is_share(metric: str) -> bool:
    """Tell whether a metric is a fraction that is read in percent."""
    return metric.lower() in SHARES


def metric_name(metric: str) -> str:
    """Return the usual name of a metric: `top-1` for `top1`."""
    return _METRICS.get(metric.lower(), metric)


def figure(value: float | None, metric: str) -> str:
    """Return a metric's value: `71.3 %` for a share, three digits for any other."""
    if value is None:
        return ABSENT
    return f"{100 * value:.1f} %" if is_share(metric) else significant(value)


def change(value: float | None, metric: str) -> str:
    """Return a difference with its sign, in points for a share; `±0.0` where it rounds to nothing."""
    if value is None:
        return ABSENT
    text = f"{100 * abs(value):.1f}" if is_share(metric) else significant(abs(value))
    if float(text) == 0:
        return f"±{text}"
    return ("+" if value > 0 else MINUS) + text


def span(low: float | None, high: float | None, metric: str) -> str:
    """Return an interval: `68.1 to 74.3`, '' where it is absent."""
    if low is None or high is None:
        return ""
    if is_share(metric):
        return f"{100 * low:.1f} to {100 * high:.1f}"
    return f"{significant(low)} to {significant(high)}"


def change_span(low: float | None, high: float | None, metric: str) -> str:
    """Return the interval of a difference, with signs: `−1.1 to +0.7`."""
    return "" if low is None or high is None else f"{change(low, metric)} to {change(high, metric)}"


def significant(value: float, digits: int = 3) -> str:
    """Return a number with so many significant digits and without an exponent where it is of usual size."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    # Rounded first: 0.9996 is 1.00, which has one digit fewer behind the point.
    magnitude = math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}"))))
    if not -4 <= magnitude <= 8:
        return f"{value:.{digits - 1}e}"
    return f"{value:.{max(0, digits - 1 - magnitude)}f}"


def milliseconds(value: float | None) -> str:
    """Return a time in ms with three significant digits, without its unit."""
    return ABSENT if value is None else significant(value)


def size(value: float | None) -> str:
    """Return a number of bytes in decimal units: `12.4 MB`."""
    if value is None:
        return ABSENT
    power = 0
    while abs(value) >= 999.5 and power < len(_SIZES) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.0f} {_SIZES[0]}" if power == 0 else f"{significant(value)} {_SIZES[power]}"


def ratio(value: float | None) -> str:
    """Return a ratio: `2.4×`."""
    if value is None:
        return ABSENT
    return (f"{value:.2f}" if value < 1 else f"{value:.1f}" if value < 100 else f"{value:.0f}") + TIMES


def condition(spec: NoiseSpec) -> str:
    """Return what was chosen of a noise: `severity 3`, `ε = 2/255, linf`, `opencv-bilinear`, '' for nothing."""
    parts = [spec.option] if spec.option else []
    if spec.severity is not None:
        parts.append(f"ε = {spec.severity}" if spec.family == "attack" else f"severity {spec.severity}")
    if spec.norm:
        parts.append(spec.norm)
    return ", ".join(parts)


def noise_title(spec: NoiseSpec) -> str:
    """Return a noise in one line: `pgd · ε = 2/255, linf`."""
    chosen = condition(spec)
    return f"{spec.name} · {chosen}" if chosen else spec.name
