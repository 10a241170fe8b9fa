"""Shows what benchmarks found, to people and to programs."""

import os
import platform
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import TypeAlias

from benchmarks.benchmark import Benchmark, Figure

Results: TypeAlias = Mapping[Benchmark, Sequence[Figure]]
"""What each benchmark found, in the order they ran."""

_COLUMNS = ("", "", "rounds", "median", "p99", "min", "max", "")


def machine() -> dict[str, str | int | None]:
    """Describe what the figures were measured on.

    Returns:
        The versions and the machine.
    """
    return {
        "pipecat-ai": version("pipecat-ai"),
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "cpus": os.cpu_count(),
    }


def as_text(benchmark: Benchmark, figures: Sequence[Figure]) -> str:
    """Lay out one benchmark's figures as a table.

    Args:
        benchmark: What ran.
        figures: What it found.

    Returns:
        The table, below its title and above how it was measured.
    """
    lines = [_COLUMNS, *(_line(figure) for figure in figures)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    # What was measured is words, to the left; the figures are numbers, to the right.
    table = [
        "  ".join(
            cell.ljust(width) if position < 2 else cell.rjust(width)
            for position, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([f"{benchmark.name}: {benchmark.title}", *table, _wrapped(benchmark.method)])


def as_json(results: Results) -> dict[str, object]:
    """Give all figures as a value that JSON can express.

    Args:
        results: What each benchmark found.

    Returns:
        The machine, and the figures by the name of their benchmark.
    """
    return {
        "machine": machine(),
        "benchmarks": {
            benchmark.name: {
                "title": benchmark.title,
                "method": benchmark.method,
                "figures": [asdict(figure) for figure in figures],
            }
            for benchmark, figures in results.items()
        },
    }


def _line(figure: Figure) -> tuple[str, ...]:
    spread = figure.spread
    numbers = (spread.median, spread.p99, spread.minimum, spread.maximum)
    return (
        figure.quantity,
        figure.subject,
        str(spread.count),
        *(f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}" for number in numbers),
        figure.unit,
    )


def _wrapped(text: str) -> str:
    return textwrap.fill(text, width=100)
