"""Formatted numbers, each with its unit, never broken off it at the end of a line."""

from __future__ import annotations

from ltcompile.core.task import Metric

NBSP = "\u00a0"
SIZES = {"filters": "filters", "params": "parameters", "macs": "MACs", "latency": "measured latency"}  # the measures of sparsity


def count(number: float) -> str:
    """14724042 -> '14.72 M'."""
    for start, size, unit in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):  # four digits are still read as they are
        if number >= start:
            return f"{number / size:.4g}{NBSP}{unit}"
    return f"{number:.4g}" if number % 1 else f"{number:.0f}"


def percent(share: float, digits: int = 1) -> str:
    """0.712 -> '71.2 %'."""
    return minus(f"{100 * share:.{digits}f}") + f"{NBSP}%"


def score(value: float, metric: Metric) -> str:
    """A value of the metric: '97.20 %', '31.23 dB'."""
    return percent(value, 2) if metric.is_share else minus(f"{metric.scale * value:.2f}") + f"{NBSP}{metric.unit}"


def gap(difference: float, metric: Metric) -> str:
    """A difference in the metric's unit: -0.25 -> '−0.25 points'."""
    return minus(metric.signed(difference)) + f"{NBSP}{metric.unit}"


def apart(difference: float, metric: Metric) -> str:
    """-0.25 -> '0.25 points below'; above is better, also where lower values are."""
    if abs(difference) < 0.005:
        return "level with"
    sides = ("below", "above") if metric.higher_is_better else ("worse than", "better than")
    return f"{abs(difference):.2f}{NBSP}{metric.unit} {sides[difference > 0]}"


def axis(metric: Metric) -> str:
    """The title of an axis of validation values."""
    return f"validation {metric.name} ({'%' if metric.is_share else metric.unit})"


def title(metric: Metric) -> str:
    """The metric's name at the beginning of a line: 'Accuracy', 'mAP'."""
    return metric.name.capitalize() if metric.name.islower() else metric.name


def minus(text: str) -> str:
    """A true minus sign, and no sign on a zero."""
    return text.lstrip("+-") if float(text) == 0 else text.replace("-", "\u2212")


def number(value: float) -> str:
    """Three significant digits, without powers of ten for everyday sizes."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def measured(value: float) -> str:
    """Three significant digits, with trailing zeros, which are measured digits too."""
    return f"{value:.0f}" if abs(value) >= 99.95 else f"{value:#.3g}".rstrip(".")


def ms(milliseconds: float) -> str:
    return f"{measured(milliseconds)}{NBSP}ms"


def times(ratio: float) -> str:
    return f"{ratio:.2f}\u00d7"


def size(count_of_bytes: float) -> str:
    """Bytes in KiB or MiB."""
    unit, label = (2**20, "MiB") if count_of_bytes >= 2**20 else (2**10, "KiB")
    return f"{measured(count_of_bytes / unit)}{NBSP}{label}"


def error(value: float) -> str:
    return "0" if value == 0 else minus(f"{value:.1e}")


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{number(seconds)}{NBSP}s"
    return f"{seconds / 60:.1f}{NBSP}min" if seconds < 7200 else f"{seconds / 3600:.1f}{NBSP}h"


FILTERS = {f.__name__: f for f in (count, percent, score, gap, title, number, measured, ms, times, size, error, duration)}
