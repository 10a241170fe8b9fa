"""What a typed job costs beside one whose handler takes the message."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from pydantic import BaseModel

from benchmarks.benchmark import Benchmark, Figure, Work
from benchmarks.sampling import Series, figures, take_turns, timed
from benchmarks.subjects import OURS, OurWorker, RunningWorkers, running
from pipecat_jobs import BaseWorker, job

#: Jobs in a row for one sample.
_JOBS = 200

#: How many jobs are profiled.
_PROFILED = 2_000


class Shelf(BaseModel):
    """Where a book stands."""

    room: str
    number: int


class Library(OurWorker):
    """Has the same job with the message and with fields."""

    @job
    async def find_by_message(self, message):
        """Find a book."""
        return {"room": message.payload["title"], "number": message.payload["floor"]}

    @job
    async def find_book(self, title: str, floor: int = 0) -> Shelf:
        """Find a book."""
        return Shelf(room=title, number=floor)


_SUBJECT = replace(OURS, worker=Library)


def _requester(workers: RunningWorkers) -> BaseWorker:
    assert isinstance(workers.requester, BaseWorker)
    return workers.requester


async def _ask_plain(workers: RunningWorkers) -> None:
    payload = {"title": "Emma", "floor": 1}
    requester = _requester(workers)
    async with requester.job(workers.names[0], name="find_by_message", payload=payload) as j:
        pass
    assert j.response["number"] == 1


async def _ask_typed(workers: RunningWorkers) -> None:
    request = Library.find_book.request(title="Emma", floor=1)
    async with _requester(workers).job(workers.names[0], request) as j:
        pass
    assert j.response.number == 1


async def _run(rounds: int) -> list[Figure]:
    async with running(_SUBJECT, 1) as workers:
        plain = Series(
            "one job",
            "a handler of the message",
            timed(lambda: _ask_plain(workers), _JOBS, follows=True),
        )
        typed = Series(
            "one job", "a typed handler", timed(lambda: _ask_typed(workers), _JOBS, follows=True)
        )
        samples = await take_turns([plain, typed], rounds)
    more = [
        (one - other) * 1_000 for one, other in zip(samples[typed], samples[plain], strict=True)
    ]
    extra = Series("one job, more than plain", typed.subject, typed.sample, unit="us")
    return figures({**samples, extra: more})


@asynccontextmanager
async def _ours() -> AsyncIterator[Work]:
    async with running(_SUBJECT, 1) as workers:

        async def jobs() -> None:
            for _ in range(_PROFILED):
                await _ask_typed(workers)

        yield jobs


TYPED = Benchmark(
    name="typed",
    title="a typed job: fields and a model as the response",
    method=(
        f"From the call to the response on RoutedBus; the mean of {_JOBS} jobs in a row is one "
        "sample. A typed job makes its request, validates the payload, writes a model as the "
        "response and reads it again. The difference is of samples of one round."
    ),
    rounds=15,
    run=_run,
    ours=_ours,
)
