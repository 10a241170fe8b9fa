"""What a job group costs, from a few workers to thousands."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from benchmarks.benchmark import Benchmark, Figure, Spread, Work
from benchmarks.sampling import Samples, Series, figures, ratio, take_turns, timed
from benchmarks.subjects import FLOOR, OURS, OURS_ON_PIPECATS_BUS, PIPECATS, floor, running

#: How many workers are asked at once, by subject.
_SIZES = {
    OURS: (10, 100, 1_000, 5_000),
    PIPECATS: (10, 100, 1_000),
    OURS_ON_PIPECATS_BUS: (10, 100),
}

#: From this size on, a group of Pipecat's takes many seconds.
_ONCE = 1_000

#: Workers asked in one sample, if one group has fewer.
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
        compared.append(_per_worker(taken, size, ours))
        if pipecats is not None:
            compared.append(ratio(ours.quantity, taken, pipecats, ours))
    return [*measured, *compared]


async def _sample(size: int, rounds: int) -> Samples:
    """Sample all subjects that are measured at one size, with no workers alive but theirs."""

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


def _per_worker(samples: Samples, size: int, series: Series) -> Figure:
    costs = Spread.of([1000 * sample / size for sample in samples[series]])
    return Figure(f"each worker of {size:,}", series.subject, "us", costs)


@asynccontextmanager
async def _ours() -> AsyncIterator[Work]:
    async with running(OURS, _PROFILED) as workers:
        yield workers.group


GROUP = Benchmark(
    name="group",
    title="one worker asks all the others on its bus at once",
    method=(
        "From the call to the last answer, in one process; no other worker is on the bus. A group "
        f"of fewer than {_ASKED} is asked several times in a row for one sample. Size after size, "
        f"the subjects take turns within each round; Pipecat's group of {_ONCE:,} is sampled once, "
        "without a warm-up, and larger ones are left out, since it is the square of its size. The "
        "floor is a queue, a task and a future for each worker."
    ),
    rounds=7,
    run=_run,
    ours=_ours,
)
