import json
from pathlib import Path

import pytest

from benchmarks import round_trip
from benchmarks.__main__ import BENCHMARKS, main
from benchmarks.benchmark import Spread


def test_the_interruption_benchmark_measures_both_job_layers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "figures.json"

    main(["interruption", "--rounds", "2", "--json", str(path)])

    assert BENCHMARKS["interruption"].title in capsys.readouterr().out
    figures = json.loads(path.read_text())["benchmarks"]["interruption"]["figures"]
    measured = {(figure["quantity"], figure["subject"]): figure["spread"] for figure in figures}
    ours = measured["sent after the interruption", "pipecat-jobs"]
    pipecats = measured["sent after the interruption", "Pipecat's own jobs"]
    assert (ours["count"], pipecats["count"]) == (2, 1)
    assert ours["maximum"] < pipecats["minimum"]
    assert all(figure["unit"] in ("ms", "tokens") for figure in figures)


def test_the_round_trip_benchmark_measures_every_subject_with_few_and_many_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(round_trip, "_IDLE", (0, 2))
    path = tmp_path / "figures.json"

    main(["round-trip", "--rounds", "2", "--json", str(path)])

    figures = json.loads(path.read_text())["benchmarks"]["round-trip"]["figures"]
    assert {(figure["quantity"], figure["subject"]) for figure in figures} == {
        (f"one job, {workers} workers", subject)
        for workers in (2, 4)
        for subject in (
            "asyncio, no bus",
            "Pipecat's jobs",
            "ours on Pipecat's bus",
            "ours on RoutedBus",
        )
    }
    assert {figure["spread"]["count"] for figure in figures} == {2}


def test_an_unknown_benchmark_is_refused_with_those_there_are(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["speed of light"])

    error = capsys.readouterr().err
    assert "no benchmark 'speed of light'; there are:" in error
    assert "interruption" in error


@pytest.mark.parametrize("rounds", ["0", "-1", "many"])
def test_what_is_no_number_of_rounds_is_refused(rounds: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["--rounds", rounds])

    assert "--rounds" in capsys.readouterr().err


def test_a_spread_has_the_middle_the_slowest_hundredth_and_the_ends():
    assert Spread.of(range(200, 0, -1)) == Spread(
        count=200, median=100.5, p99=198, minimum=1, maximum=200
    )


def test_of_few_samples_the_slowest_hundredth_is_the_slowest():
    assert Spread.of([3, 1, 2]) == Spread(count=3, median=2, p99=3, minimum=1, maximum=3)


def test_a_spread_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one sample"):
        Spread.of([])
