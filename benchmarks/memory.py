"""The memory that workers and jobs hold, and the memory that is left after jobs."""

import asyncio
import gc
import tracemalloc
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from types import CodeType, CoroutineType, FrameType, FunctionType, ModuleType

from benchmarks.benchmark import Benchmark, Figure
from benchmarks.child import Measured, measure_in_children, resident
from benchmarks.sampling import settle
from benchmarks.subjects import (
    OURS,
    OURS_ON_PIPECATS_BUS,
    PIPECATS,
    SUBJECTS,
    RunningWorkers,
    Subject,
    running,
)

#: How many idle workers and jobs in flight are measured for a mean.
_HELD = 1_000

#: The numbers of jobs after which memory is compared. A job of Pipecat searches everything that
#: earlier jobs have left, so 100,000 of them would take too long.
_FEW = 1_000
_MANY = {PIPECATS: 10_000, OURS_ON_PIPECATS_BUS: 10_000, OURS: 100_000}

#: Types of objects that are shared by all workers, so that nothing behind them is counted.
_ELSEWHERE = (
    type,
    ModuleType,
    FunctionType,
    CodeType,
    FrameType,
    CoroutineType,
    asyncio.AbstractEventLoop,
    asyncio.Task,
)


async def _measure_held(subject: Subject, count: int) -> Measured:
    """Measure the memory of an idle worker and of a job in flight."""
    async with running(subject, 1) as workers:
        # The first job allocates what all jobs share.
        async with _in_flight(workers, 1):
            pass
        tracemalloc.start()
        before = _measure_traced()
        # The requester is idle as well, so it counts as one of them.
        async with running(subject, count - 1):
            idle = _measure_traced() - before
        before = _measure_traced()
        async with _in_flight(workers, count):
            in_flight = _measure_traced() - before
        tracemalloc.stop()
    return {
        ("held by an idle worker", "bytes"): idle / count,
        ("held by a job in flight", "bytes"): in_flight / count,
    }


@asynccontextmanager
async def _in_flight(workers: RunningWorkers, count: int) -> AsyncIterator[None]:
    started = asyncio.Semaphore(0)
    async with asyncio.TaskGroup() as tasks:
        requests = [tasks.create_task(workers.hold(started)) for _ in range(count)]
        for _ in requests:
            await started.acquire()
        yield
        for request in requests:
            request.cancel()
    await settle()


def _measure_traced() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


async def _measure_left(subject: Subject, few: int, many: int) -> Measured:
    """Measure what is left after jobs."""
    async with running(subject, 1) as workers:
        before = await _measure_after(workers, few)
        after = await _measure_after(workers, many - few)
    since = f"left by {few:,} to {many:,} jobs"
    return {
        (f"{what}, {since}", unit): after[what, unit] - before[what, unit] for what, unit in after
    }


async def _measure_after(workers: RunningWorkers, jobs: int) -> Measured:
    for _ in range(jobs):
        await workers.job()
    await settle()
    requester = workers.requester
    return {
        ("resident memory", "MB"): resident(),
        # The registry has no public way to list watches.
        ("registry watches", ""): sum(map(len, requester.registry._watches.values())),
        ("tasks", ""): len(asyncio.all_tasks()),
        ("entries", ""): _count_entries(
            requester, *workers.peers, requester.bus, requester.registry
        ),
    }


def _count_entries(*owners: object) -> int:
    """Count the items of all maps, lists, sets and queues that objects refer to."""
    entries = 0
    found: dict[int, object] = {}
    waiting = list(owners)
    while waiting:
        each = waiting.pop()
        if id(each) in found or isinstance(each, _ELSEWHERE):
            continue
        found[id(each)] = each
        if isinstance(each, dict | list | set | deque):
            entries += len(each)
        waiting.extend(gc.get_referents(each))
    return entries


async def _run(rounds: int) -> list[Figure]:
    return await measure_in_children(
        [
            *((subject, partial(_measure_held, subject, _HELD)) for subject in SUBJECTS),
            *(
                (subject, partial(_measure_left, subject, _FEW, many))
                for subject, many in _MANY.items()
            ),
        ],
        rounds,
    )


MEMORY = Benchmark(
    name="memory",
    title="what workers and jobs hold, and what jobs leave behind",
    method=(
        f"Held is what Python has allocated (tracemalloc) for one of {_HELD:,} workers or jobs in "
        "flight, including the task that waits for the job. Left is the growth from the first to "
        "the second number of jobs, one after the other: resident memory, registry watches, "
        "tasks, and entries in all maps, lists, sets and queues that the two workers, the bus and "
        "the registry refer to. Every measurement has a process of its own, and all memory is "
        "measured after a garbage collection."
    ),
    rounds=1,
    run=_run,
)
