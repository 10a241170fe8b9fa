"""Draws the cost of jobs against the number of workers."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from benchmarks.benchmark import Figure
from benchmarks.subjects import FLOOR, OURS, OURS_ON_PIPECATS_BUS, PIPECATS

#: Readable on white and on black, and different also for colour-blind readers.
_COLOURS = {
    PIPECATS.name: "#d9573b",
    OURS_ON_PIPECATS_BUS.name: "#c08a1e",
    OURS.name: "#2f81f7",
    FLOOR: "#808b96",
}
_MARKERS = {PIPECATS.name: "s", OURS_ON_PIPECATS_BUS.name: "^", OURS.name: "o", FLOOR: ""}
_INK = "#808b96"

_STYLE = {
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": _INK,
    "axes.titlesize": 11,
    "font.family": "sans-serif",
    "font.size": 10,
    "grid.alpha": 0.25,
    "grid.color": _INK,
    "legend.frameon": False,
    "legend.labelcolor": _INK,
    "lines.linewidth": 2,
    "lines.markersize": 5,
    # The same figures make the same file, and it looks the same without any installed font.
    "svg.fonttype": "path",
    "svg.hashsalt": "pipecat-jobs",
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
}


def draw(panels: Sequence[tuple[str, Sequence[Figure]]], path: Path) -> None:
    """Draw medians in ms against the number of workers, with a line for each subject."""
    # Not pyplot, which needs a display and keeps all figures.
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **_STYLE}):
        canvas = Canvas(figsize=(10, 4.2), layout="constrained")
        lines: dict[str, Line2D] = {}
        panes = canvas.subplots(1, len(panels), squeeze=False)[0]
        for axes, (title, figures) in zip(panes, panels, strict=True):
            costs = [figure for figure in figures if figure.unit == "ms"]
            lines.update(_draw_panel(axes, title, costs))
        canvas.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=len(lines))
        canvas.savefig(
            path, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
        )


def _draw_panel(axes: Axes, title: str, figures: Sequence[Figure]) -> dict[str, Line2D]:
    lines: dict[str, Line2D] = {}
    axes.set_title(title)
    axes.set_xscale("log")
    axes.set_yscale("log")
    sizes = sorted({figure.workers for figure in figures if figure.workers is not None})
    for subject, colour in _COLOURS.items():
        own = [figure for figure in figures if figure.subject == subject]
        if not own:
            continue
        # A cost that does not depend on the number of workers is a horizontal line.
        flat = own[0].workers is None
        counts = sizes if flat else [figure.workers for figure in own]
        medians = [figure.spread.median for figure in (own * len(sizes) if flat else own)]
        (lines[subject],) = axes.plot(
            counts,
            medians,
            marker=_MARKERS[subject],
            linestyle=":" if subject == FLOOR else "-",
            color=colour,
        )
    axes.set_xlabel("workers on the bus")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.set_ylabel("milliseconds")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.minorticks_off()
    axes.grid(visible=True)
    return lines
