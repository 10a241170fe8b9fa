"""Writes the figures of benchmarks as text and as JSON."""

import os
import platform
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import TypeAlias

from benchmarks.benchmark import Benchmark, Figure

Results: TypeAlias = Mapping[Benchmark, Sequence[Figure]]
"""The figures of each benchmark, in the order in which they ran."""

_COLUMNS = ("", "", "rounds", "median", "p99", "min", "max", "")


def describe_machine() -> dict[str, str | int | None]:
    """Describe the machine and the versions that the figures were measured with."""
    return {
        "pipecat-ai": version("pipecat-ai"),
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "cpus": os.cpu_count(),
    }


def to_text(benchmark: Benchmark, figures: Sequence[Figure]) -> str:
    """Write the figures of one benchmark as a table, with its title and its method."""
    lines = [_COLUMNS, *(_make_line(figure) for figure in figures)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    # Words are aligned to the left, numbers to the right.
    table = [
        "  ".join(
            cell.ljust(width) if position < 2 else cell.rjust(width)
            for position, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([f"{benchmark.name}: {benchmark.title}", *table, _wrap(benchmark.method)])


def to_json(results: Results) -> dict[str, object]:
    """Turn all figures, and the machine, into a value that can be written as JSON."""
    return {
        "machine": describe_machine(),
        "benchmarks": {
            benchmark.name: {
                "title": benchmark.title,
                "method": benchmark.method,
                "figures": [asdict(figure) for figure in figures],
            }
            for benchmark, figures in results.items()
        },
    }


def _make_line(figure: Figure) -> tuple[str, ...]:
    spread = figure.spread
    numbers = (spread.median, spread.p99, spread.minimum, spread.maximum)
    return (
        figure.quantity,
        figure.subject,
        str(spread.count),
        *(f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}" for number in numbers),
        figure.unit,
    )


def _wrap(text: str) -> str:
    return textwrap.fill(text, width=100)
