"""What the options of a job cost, beside a job without any."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from benchmarks.benchmark import Benchmark, Figure, Work
from benchmarks.sampling import Series, figures, take_turns, timed
from benchmarks.subjects import OURS, OurWorker, RunningWorkers, running
from pipecat_jobs import BaseWorker, Retry, job
from pipecat_jobs.params import JobKeywords

#: Jobs in a row for one sample.
_JOBS = 200

#: How many jobs are profiled.
_PROFILED = 2_000

_RETRY = Retry(attempts=3)

#: The job without options, by its name in the figures.
_PLAIN = "none"
#: The options of each series: the name of the handler, and the keywords of the call.
_OPTIONS: dict[str, tuple[str, JobKeywords]] = {
    _PLAIN: ("find_book", {}),
    "a timeout": ("find_book", {"timeout": 30}),
    "retry": ("find_book", {"retry": _RETRY}),
    "hedge_after": ("find_book", {"hedge_after": 30}),
    "a handler with a key": ("find_book_in_turn", {}),
    "all of them": ("find_book_in_turn", {"timeout": 30, "retry": _RETRY, "hedge_after": 30}),
}


class Library(OurWorker):
    """Has the same job with a key and without."""

    @job
    async def find_book(self, message):
        """Find a book."""
        return message.payload

    @job(key="title")
    async def find_book_in_turn(self, message):
        """Find a book after all earlier requests for the same title."""
        return message.payload


_SUBJECT = replace(OURS, worker=Library)


async def _ask(workers: RunningWorkers, options: str) -> None:
    requester = workers.requester
    assert isinstance(requester, BaseWorker)
    name, keywords = _OPTIONS[options]
    payload = {"title": "Emma"}
    async with requester.job(workers.names[0], name=name, payload=payload, **keywords) as j:
        pass
    assert j.response == payload


def _make_series(workers: RunningWorkers, options: str) -> Series:
    return Series("one job", options, timed(lambda: _ask(workers, options), _JOBS, follows=True))


async def _run(rounds: int) -> list[Figure]:
    async with running(_SUBJECT, 1) as workers:
        series = {options: _make_series(workers, options) for options in _OPTIONS}
        samples = await take_turns(series.values(), rounds)
    plain = samples[series.pop(_PLAIN)]
    more = {
        Series("one job, more than plain", each.subject, each.sample, unit="us"): [
            (one - other) * 1_000 for one, other in zip(samples[each], plain, strict=True)
        ]
        for each in series.values()
    }
    return figures({**samples, **more})


@asynccontextmanager
async def _ours() -> AsyncIterator[Work]:
    async with running(_SUBJECT, 1) as workers:

        async def jobs() -> None:
            for _ in range(_PROFILED):
                await _ask(workers, "all of them")

        yield jobs


OPTIONS = Benchmark(
    name="options",
    title="a job with options, beside one without",
    method=(
        f"From the call to the response on RoutedBus; the mean of {_JOBS} jobs in a row is one "
        "sample. Every job completes at its first attempt and none waits for its key, so that the "
        "figures are what the options cost where they change nothing. The difference is of samples "
        "of one round."
    ),
    rounds=15,
    run=_run,
    ours=_ours,
)
