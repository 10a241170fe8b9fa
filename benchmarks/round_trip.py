"""What one job costs, and what it costs with many workers on the bus."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from benchmarks.benchmark import Benchmark, Figure, Work
from benchmarks.sampling import Series, figures, ratio, take_turns, timed
from benchmarks.subjects import FLOOR, OURS, PIPECATS, SUBJECTS, Subject, floor, running

#: How many workers are on the bus beside the two of the job; the first is what others compare to.
_IDLE = (0, 10, 100, 1_000, 5_000)

#: Jobs in a row that make a sample, and how many of them where each wakes every worker.
_JOBS = 50
_DELIVERIES_PER_SAMPLE = 4_000

#: Jobs that are profiled.
_PROFILED = 2_000


def _jobs_per_sample(subject: Subject, workers: int) -> int:
    return _JOBS if subject is OURS else max(1, min(_JOBS, _DELIVERIES_PER_SAMPLE // workers))


async def _run(rounds: int) -> list[Figure]:
    the_floor = Series("one job", FLOOR, timed(floor, _JOBS))
    series: dict[tuple[Subject, int], Series] = {}
    async with AsyncExitStack() as stack:
        for idle in _IDLE:
            count = idle + 2
            for subject in SUBJECTS:
                workers = await stack.enter_async_context(running(subject, idle + 1))
                sample = timed(workers.job, _jobs_per_sample(subject, count), follows=True)
                quantity = f"one job, {count:,} workers"
                series[subject, idle] = Series(quantity, subject.name, sample, workers=count)
        samples = await take_turns([the_floor, *series.values()], rounds)
    ours = {idle: series[OURS, idle] for idle in _IDLE}
    alone = ours.pop(_IDLE[0])
    return [
        *figures(samples),
        ratio(alone.quantity, samples, alone, the_floor),
        ratio(alone.quantity, samples, series[PIPECATS, _IDLE[0]], alone),
        *(
            ratio(each.quantity, samples, series[PIPECATS, idle], each)
            for idle, each in ours.items()
        ),
        *(
            ratio(f"{each.workers:,} workers to {alone.workers}", samples, each, alone)
            for each in ours.values()
        ),
    ]


@asynccontextmanager
async def _ours() -> AsyncIterator[Work]:
    async with running(OURS, 1) as workers:

        async def jobs() -> None:
            for _ in range(_PROFILED):
                await workers.job()

        yield jobs


ROUND_TRIP = Benchmark(
    name="round-trip",
    title="one worker asks another, with more and more others on the bus",
    method=(
        "From the call to the answer, in one process; the mean of up to "
        f"{_JOBS} jobs in a row is one sample, of fewer where each job wakes every worker. One "
        "more goes before them, uncounted: what it leaves undone is the first one's, as what each "
        "leaves is the next one's. All subjects at all sizes are alive at once and take turns "
        "within each round; ratios are of samples of one round. The floor is a queue, a task and a "
        "future, without any bus or job. What workers broadcast when they start, the square of "
        "their number, is left out."
    ),
    rounds=15,
    run=_run,
    ours=_ours,
)
