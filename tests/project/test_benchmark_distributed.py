import pytest

from benchmarks import distributed


async def test_the_distributed_benchmark_measures_every_subject(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(distributed, "_PROCESSES", (2, 3))
    monkeypatch.setattr(distributed, "_IDLE_FOR", 0.5)

    figures = await distributed._run(1)

    measured = {(figure.quantity, figure.subject) for figure in figures}
    for processes in (2, 3):
        for quantity in (
            f"one job, {processes} processes",
            f"100 jobs at once, {processes} processes",
        ):
            assert {(quantity, distributed._OURS), (quantity, distributed._PIPECATS)} <= measured
    assert len(figures) == 1 + 2 * 2 * 2 + 3
    assert all(figure.spread.median > 0 for figure in figures)
