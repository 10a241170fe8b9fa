"""Every benchmark of the cost of jobs, with counts too small to measure time."""

import html
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from benchmarks import (
    child,
    group,
    memory,
    options,
    round_trip,
    sessions,
    stream,
    throughput,
    typed,
)
from benchmarks.__main__ import main
from benchmarks.benchmark import Figure, Spread
from benchmarks.subjects import FLOOR, OURS, OURS_ON_PIPECATS_BUS, PIPECATS, SUBJECTS

_NAMES = {subject.name for subject in SUBJECTS}


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(round_trip, "_IDLE", (0, 2))
    monkeypatch.setattr(round_trip, "_JOBS", 2)
    monkeypatch.setattr(round_trip, "_PROFILED", 2)
    monkeypatch.setattr(
        group, "_SIZES", {OURS: (1, 3, 4), PIPECATS: (1, 3), OURS_ON_PIPECATS_BUS: (1,)}
    )
    monkeypatch.setattr(group, "_ONCE", 3)
    monkeypatch.setattr(group, "_ASKED", 2)
    monkeypatch.setattr(throughput, "_ANSWERING", (1, 2))
    monkeypatch.setattr(throughput, "_IN_FLIGHT", 4)
    monkeypatch.setattr(throughput, "_IN_A_ROW", 2)
    monkeypatch.setattr(memory, "_HELD", 5)
    monkeypatch.setattr(memory, "_FEW", 600)
    monkeypatch.setattr(memory, "_MANY", {PIPECATS: 610, OURS: 700})
    monkeypatch.setattr(stream, "_CHUNKS", 20)
    monkeypatch.setattr(stream, "_LOOK", 20)
    monkeypatch.setattr(sessions, "_COUNTS", (2,))
    monkeypatch.setattr(sessions, "_DEBATES", 1)
    monkeypatch.setattr(sessions, "_INTERRUPTIONS", 1)
    monkeypatch.setattr(sessions, "fresh_process", lambda: ThreadPoolExecutor(1))
    # A process takes seconds to import Pipecat, and these tests do not check its memory.
    monkeypatch.setattr(child, "fresh_process", lambda: ThreadPoolExecutor(1))
    monkeypatch.setattr(child, "_AT_ONCE", 1)


def _measure(path: Path, name: str, *arguments: str) -> dict[tuple[str, str], Any]:
    main([name, "--json", str(path), *arguments])
    (benchmark,) = json.loads(path.read_text())["benchmarks"].values()
    return {(figure["quantity"], figure["subject"]): figure for figure in benchmark["figures"]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "figures.json"


def test_a_round_trip_is_measured_on_every_subject_with_few_and_many_workers(path: Path):
    figures = _measure(path, "round-trip", "--rounds", "2")

    costs = {key for key, figure in figures.items() if figure["unit"] == "ms"}
    assert costs == {
        ("one job", FLOOR),
        *((f"one job, {workers} workers", name) for workers in (2, 4) for name in _NAMES),
    }
    assert {figure["spread"]["count"] for figure in figures.values()} == {2}
    assert {key for key, figure in figures.items() if figure["unit"] == "x"} == {
        ("one job, 2 workers", f"{OURS.name} / {FLOOR}"),
        ("one job, 2 workers", f"{PIPECATS.name} / {OURS.name}"),
        ("one job, 4 workers", f"{PIPECATS.name} / {OURS.name}"),
        ("4 workers to 2", OURS.name),
    }


def test_each_option_is_measured_beside_a_job_without_any(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(options, "_JOBS", 2)
    figures = _measure(path, "options", "--rounds", "2")
    given = ["a timeout", "retry", "hedge_after", "a handler with a key", "all of them"]
    assert list(figures) == [
        ("one job", "none"),
        *(("one job", option) for option in given),
        *(("one job, more than plain", option) for option in given),
    ]


def test_a_typed_job_is_measured_beside_a_plain_one(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(typed, "_JOBS", 2)
    figures = _measure(path, "typed", "--rounds", "2")

    assert figures.keys() == {
        ("one job", "a handler of the message"),
        ("one job", "a typed handler"),
        ("one job, more than plain", "a typed handler"),
    }


def test_a_group_is_measured_at_the_largest_size_of_each_subject(path: Path):
    figures = _measure(path, "group", "--rounds", "2")

    counts = {key: figure["spread"]["count"] for key, figure in figures.items()}
    assert counts == {
        **{(f"a group of {size}", FLOOR): 2 for size in (1, 3, 4)},
        **{(f"a group of {size}", OURS.name): 2 for size in (1, 3, 4)},
        **{(f"each worker of {size}", OURS.name): 2 for size in (1, 3, 4)},
        ("a group of 1", OURS_ON_PIPECATS_BUS.name): 2,
        ("a group of 1", PIPECATS.name): 2,
        ("a group of 3", PIPECATS.name): 1,
        ("a group of 1", f"{PIPECATS.name} / {OURS.name}"): 2,
        ("a group of 3", f"{PIPECATS.name} / {OURS.name}"): 1,
    }


def test_throughput_is_measured_with_one_and_with_many_workers(path: Path):
    figures = _measure(path, "throughput", "--rounds", "1")

    assert set(figures) == {
        ("4 in flight", FLOOR),
        *(
            (f"4 in flight, {answering} answering", subject)
            for answering in (1, 2)
            for subject in (*_NAMES, f"{OURS.name} / {PIPECATS.name}")
        ),
    }
    assert all(figure["spread"]["minimum"] > 0 for figure in figures.values())


@pytest.mark.slow
def test_memory_is_measured_and_our_jobs_leave_nothing(path: Path):
    figures = _measure(path, "memory")

    for subject in _NAMES:
        for what in ("an idle worker", "a job in flight"):
            assert figures[f"held by {what}", subject]["spread"]["minimum"] > 0
    for what in ("registry watches", "tasks", "entries"):
        assert figures[f"{what}, left by 600 to 700 jobs", OURS.name]["spread"]["maximum"] == 0
    # Leftovers are measured: Pipecat leaves a watch for each job.
    watches = figures["registry watches, left by 600 to 610 jobs", PIPECATS.name]
    assert watches["spread"]["maximum"] == 10


@pytest.mark.slow
def test_a_stream_is_measured_on_every_subject(path: Path):
    figures = _measure(path, "stream")

    assert set(figures) == {("20 chunks, peak above the start", name) for name in _NAMES}


@pytest.mark.slow
def test_sessions_are_measured_on_both_job_layers(path: Path):
    figures = _measure(path, "sessions")

    layers = ("pipecat-jobs", "Pipecat's own jobs")
    assert set(figures) == {
        (f"{quantity}, 2 at once", layer)
        for quantity in ("CPU of a debate", "memory of a session", "interrupted until closed")
        for layer in layers
    }
    ours, pipecats = (
        figures["interrupted until closed, 2 at once", layer]["spread"] for layer in layers
    )
    assert ours["count"] == pipecats["count"] == 2
    assert ours["maximum"] < pipecats["minimum"]


@pytest.mark.slow
def test_an_import_is_measured_and_imports_nothing_optional(path: Path):
    figures = _measure(path, "import", "--rounds", "1")

    assert figures["import", "pipecat_jobs on top"]["spread"]["median"] > 0
    assert figures["import", "what we need of Pipecat"]["spread"]["median"] > 0
    assert figures["optional packages", "pipecat_jobs on top"]["spread"]["maximum"] == 0


def test_a_profile_shows_where_our_time_goes(capsys: pytest.CaptureFixture[str]):
    main(["round-trip", "--profile"])

    output = capsys.readouterr().out
    assert "Ordered by: internal time" in output
    assert "executor.py" in output


def test_a_plot_has_a_line_for_each_subject_and_is_the_same_for_the_same_figures(tmp_path: Path):
    # Imports matplotlib, which no other test needs.
    from benchmarks.plot import draw

    figures = [
        Figure("", FLOOR, "ms", Spread.of([0.01])),
        *(
            Figure("", subject.name, "ms", Spread.of([0.1 * workers]), workers)
            for subject in SUBJECTS
            for workers in (2, 102)
        ),
        Figure("", OURS.name, "x", Spread.of([1])),
    ]
    pictures: list[str] = []
    for name in ("one.svg", "two.svg"):
        draw([("one job", figures), ("a group", figures[1:])], tmp_path / name)
        pictures.append((tmp_path / name).read_text())

    assert pictures[0] == pictures[1]
    labels = html.unescape(pictures[0])
    assert all(f"<!-- {name} -->" in labels for name in (*_NAMES, FLOOR))


@pytest.mark.slow
def test_a_run_of_the_plotted_benchmarks_writes_the_plot(tmp_path: Path):
    path = tmp_path / "cost.svg"

    main(["round-trip", "group", "--rounds", "1", "--plot", str(path)])

    assert "<svg" in path.read_text()
