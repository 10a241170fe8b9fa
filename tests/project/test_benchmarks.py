import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks import conversation
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


def test_the_conversation_benchmark_counts_what_was_said_on_both_sides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # A process takes seconds to import Pipecat. Not this thread: it has an event loop already.
    monkeypatch.setattr(conversation, "_make_executor", lambda: ThreadPoolExecutor(1))
    path = tmp_path / "figures.json"

    main(["conversation", "--rounds", "11", "--json", str(path)])

    figures = json.loads(path.read_text())["benchmarks"]["conversation"]["figures"]
    measured = {(f["quantity"], f["subject"]): f["spread"]["maximum"] for f in figures}
    for subject in ("pipecat-jobs", "Pipecat's", "pipecat-jobs, LLM rereads"):
        ends = ["said exactly once", "said twice or more"]
        ends += ["never said, in enough silence", "never said, without it"]
        assert sum(measured[end, subject] for end in ends) == measured["results", subject] > 11
    assert measured["never said, in enough silence", "Pipecat's"] > 0
    for subject in ("pipecat-jobs", "pipecat-jobs, LLM rereads"):
        assert measured["said twice or more", subject] == 0
        assert measured["never said, in enough silence", subject] == 0
        assert measured["begun while the user spoke", subject] == 0
        assert measured["LLM runs for an update", subject] == 0


def test_an_unknown_benchmark_is_refused_and_the_error_names_the_known_ones(
    capsys: pytest.CaptureFixture[str],
):
    with pytest.raises(SystemExit):
        main(["speed of light"])

    error = capsys.readouterr().err
    assert "benchmark 'speed of light' does not exist; give some of:" in error
    assert "interruption" in error


@pytest.mark.parametrize("rounds", ["0", "-1", "many"])
def test_an_invalid_number_of_rounds_is_refused(rounds: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["--rounds", rounds])

    assert "--rounds" in capsys.readouterr().err


def test_a_plot_without_its_figures_is_refused_and_the_error_names_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "cost.svg"

    with pytest.raises(SystemExit):
        main(["round-trip", "--plot", str(path)])

    assert "--plot needs round-trip and group" in capsys.readouterr().err
    assert not path.exists()


def test_a_profile_of_a_benchmark_without_times_is_refused_and_the_error_names_the_others(
    capsys: pytest.CaptureFixture[str],
):
    with pytest.raises(SystemExit):
        main(["memory", "--profile"])

    assert (
        "--profile needs the name of a benchmark of time: round-trip, group"
        in capsys.readouterr().err
    )


def test_a_spread_has_the_median_the_99th_percentile_and_the_extremes():
    assert Spread.of(range(200, 0, -1)) == Spread(
        count=200, median=100.5, p99=198, minimum=1, maximum=200
    )


def test_the_99th_percentile_of_few_samples_is_the_slowest():
    assert Spread.of([3, 1, 2]) == Spread(count=3, median=2, p99=3, minimum=1, maximum=3)


def test_a_spread_without_samples_is_refused():
    with pytest.raises(ValueError, match="at least one sample"):
        Spread.of([])
