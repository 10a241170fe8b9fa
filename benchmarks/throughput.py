"""The number of jobs per second when many are in flight."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from benchmarks.benchmark import Benchmark, Figure, Work
from benchmarks.sampling import Series, figures, ratio, take_turns
from benchmarks.subjects import FLOOR, OURS, PIPECATS, SUBJECTS, RunningWorkers, floor, running

#: How many workers do the jobs.
_ANSWERING = (1, 100)

#: How many jobs are in flight at any time, and how many follow each other: enough for a full
#: garbage collection in every sample.
_IN_FLIGHT = 200
_IN_A_ROW = 25

#: How many jobs follow each other if each is delivered to a hundred workers.
_IN_A_ROW_SLOW = 2


async def _do_jobs(request: Callable[[int], Awaitable[None]], in_a_row: int) -> None:
    async def keep_requesting(number: int) -> None:
        for _ in range(in_a_row):
            await request(number)

    async with asyncio.TaskGroup() as tasks:
        for number in range(_IN_FLIGHT):
            tasks.create_task(keep_requesting(number))


def _make_sample(
    request: Callable[[int], Awaitable[None]], in_a_row: int
) -> Callable[[], Awaitable[float]]:
    async def sample() -> float:
        began = time.perf_counter()
        await _do_jobs(request, in_a_row)
        return _IN_FLIGHT * in_a_row / (time.perf_counter() - began)

    return sample


def _request_in_turn(workers: RunningWorkers) -> Callable[[int], Awaitable[None]]:
    return lambda number: workers.job(number % len(workers.names))


async def _run(rounds: int) -> list[Figure]:
    unit = "jobs/s"
    the_floor = Series(
        f"{_IN_FLIGHT} in flight", FLOOR, _make_sample(lambda _: floor(), _IN_A_ROW), unit
    )
    series: dict[tuple[str, int], Series] = {}
    async with AsyncExitStack() as stack:
        for answering in _ANSWERING:
            quantity = f"{_IN_FLIGHT} in flight, {answering} answering"
            for subject in SUBJECTS:
                workers = await stack.enter_async_context(running(subject, answering))
                slow = subject is not OURS and answering > 1
                sample = _make_sample(
                    _request_in_turn(workers), _IN_A_ROW_SLOW if slow else _IN_A_ROW
                )
                series[subject.name, answering] = Series(quantity, subject.name, sample, unit)
        samples = await take_turns([the_floor, *series.values()], rounds)
    return [
        *figures(samples),
        *(
            ratio(
                series[OURS.name, answering].quantity,
                samples,
                series[OURS.name, answering],
                series[PIPECATS.name, answering],
            )
            for answering in _ANSWERING
        ),
    ]


@asynccontextmanager
async def _ours() -> AsyncIterator[Work]:
    async with running(OURS, _ANSWERING[0]) as workers:
        yield lambda: _do_jobs(_request_in_turn(workers), _IN_A_ROW)


THROUGHPUT = Benchmark(
    name="throughput",
    title=f"jobs per second with {_IN_FLIGHT} in flight",
    method=(
        f"{_IN_FLIGHT} tasks of one worker request jobs of the others, up to {_IN_A_ROW} times in "
        "a row, the next job when the response has come: that is one sample. The subjects take "
        "turns within each round. The floor is a queue, a task and a future for each job."
    ),
    rounds=3,
    run=_run,
    ours=_ours,
)
