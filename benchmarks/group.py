"""The cost of a job group, from a few workers to thousands."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from benchmarks.benchmark import Benchmark, Figure, Spread, Work
from benchmarks.sampling import Samples, Series, figures, ratio, take_turns, timed
from benchmarks.subjects import FLOOR, OURS, OURS_ON_PIPECATS_BUS, PIPECATS, floor, running

#: The sizes of the groups, by subject.
_SIZES = {
    OURS: (10, 100, 1_000, 5_000),
    PIPECATS: (10, 100, 1_000),
    OURS_ON_PIPECATS_BUS: (10, 100),
}

#: From this size on, a group of Pipecat takes many seconds, so it is sampled once.
_ONCE = 1_000

#: The least number of jobs in one sample: smaller groups are requested several times.
_ASKED = 100

#: The size that is profiled.
_PROFILED = 1_000


async def _run(rounds: int) -> list[Figure]:
    measured: list[Figure] = []
    compared: list[Figure] = []
    for size in _SIZES[OURS]:
        taken = await _sample(size, rounds)
        measured += figures(taken)
        by_subject = {each.subject: each for each in taken}
        ours, pipecats = by_subject[OURS.name], by_subject.get(PIPECATS.name)
        compared.append(_divide_by_size(taken, size, ours))
        if pipecats is not None:
            compared.append(ratio(ours.quantity, taken, pipecats, ours))
    return [*measured, *compared]


async def _sample(size: int, rounds: int) -> Samples:
    """Sample all subjects at one size, while only their workers are alive."""

    def series_of(subject: str, group: Work) -> Series:
        return Series(
            f"a group of {size:,}",
            subject,
            timed(group, max(1, _ASKED // size)),
            workers=size,
            once=subject == PIPECATS.name and size >= _ONCE,
        )

    series = [series_of(FLOOR, partial(floor, size))]
    async with AsyncExitStack() as stack:
        for subject, sizes in _SIZES.items():
            if size in sizes:
                workers = await stack.enter_async_context(running(subject, size))
                series.append(series_of(subject.name, workers.group))
        return await take_turns(series, rounds)


def _divide_by_size(samples: Samples, size: int, series: Series) -> Figure:
    costs = Spread.of([1000 * sample / size for sample in samples[series]])
    return Figure(f"each worker of {size:,}", series.subject, "us", costs)


@asynccontextmanager
async def _ours() -> AsyncIterator[Work]:
    async with running(OURS, _PROFILED) as workers:
        yield workers.group


GROUP = Benchmark(
    name="group",
    title="one worker requests a job of all others on its bus at once",
    method=(
        "From the call to the last response, in one process; no other worker is on the bus. A "
        f"group of fewer than {_ASKED} is requested several times in a row for one sample. The "
        "subjects take turns within each round, one size after the other. Pipecat's group of "
        f"{_ONCE:,} is sampled once, without a warm-up, and larger ones are left out, because its "
        "time grows with the square of its size. The floor is a queue, a task and a future for "
        "each worker."
    ),
    rounds=5,
    run=_run,
    ours=_ours,
)
