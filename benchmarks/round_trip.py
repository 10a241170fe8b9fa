"""The cost of one job, and how it grows with the number of workers on the bus."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from benchmarks.benchmark import Benchmark, Figure, Work
from benchmarks.sampling import Series, figures, ratio, take_turns, timed
from benchmarks.subjects import FLOOR, OURS, PIPECATS, SUBJECTS, Subject, floor, running

#: How many workers are on the bus besides the two of the job; ratios are to the first number.
_IDLE = (0, 10, 100, 1_000, 5_000)

#: Jobs in a row for one sample; fewer if each job is delivered to every worker.
_JOBS = 50
_DELIVERIES_PER_SAMPLE = 4_000

#: How many jobs are profiled.
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
    title="one worker requests a job of another, with more and more others on the bus",
    method=(
        f"From the call to the response, in one process; the mean of up to {_JOBS} jobs in a row "
        "is one sample, of fewer jobs if each is delivered to every worker. One job before them is "
        "not counted: the work that a job leaves for later counts for the next job. All subjects "
        "at all sizes are alive at once and take turns within each round; ratios are of samples of "
        "one round. The floor is a queue, a task and a future, without a bus and a job. Messages "
        "that workers broadcast when they start, whose number is the square of the number of "
        "workers, are left out."
    ),
    rounds=9,
    run=_run,
    ours=_ours,
)
