"""What workers and jobs hold in memory, and what jobs leave there."""

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

#: How many idle workers and jobs in flight a mean is taken of.
_HELD = 1_000

#: After how many jobs memory is compared. Each of Pipecat's looks through what those before it have
#: left, so that as many of them would take minutes.
_FEW = 1_000
_MANY = {PIPECATS: 10_000, OURS_ON_PIPECATS_BUS: 10_000, OURS: 100_000}

#: What does not belong to the workers that lead to it.
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


async def _held(subject: Subject, count: int) -> Measured:
    """Measure what an idle worker and a job in flight hold."""
    async with running(subject, 1) as workers:
        # The first of each brings what all of them share.
        async with _in_flight(workers, 1):
            pass
        tracemalloc.start()
        before = _traced()
        # One of them asks, and is as idle as the others.
        async with running(subject, count - 1):
            idle = _traced() - before
        before = _traced()
        async with _in_flight(workers, count):
            in_flight = _traced() - before
        tracemalloc.stop()
    return {
        ("held by an idle worker", "bytes"): idle / count,
        ("held by a job in flight", "bytes"): in_flight / count,
    }


@asynccontextmanager
async def _in_flight(workers: RunningWorkers, count: int) -> AsyncIterator[None]:
    started = asyncio.Semaphore(0)
    async with asyncio.TaskGroup() as tasks:
        callers = [tasks.create_task(workers.hold(started)) for _ in range(count)]
        for _ in callers:
            await started.acquire()
        yield
        for caller in callers:
            caller.cancel()
    await settle()


def _traced() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


async def _left(subject: Subject, few: int, many: int) -> Measured:
    """Measure what jobs leave behind."""
    async with running(subject, 1) as workers:
        before = await _after(workers, few)
        after = await _after(workers, many - few)
    since = f"left by {few:,} to {many:,} jobs"
    return {
        (f"{what}, {since}", unit): after[what, unit] - before[what, unit] for what, unit in after
    }


async def _after(workers: RunningWorkers, jobs: int) -> Measured:
    for _ in range(jobs):
        await workers.job()
    await settle()
    asker = workers.asker
    return {
        ("resident memory", "MB"): resident(),
        # The registry has no public way to ask.
        ("registry watches", ""): sum(map(len, asker.registry._watches.values())),
        ("tasks", ""): len(asyncio.all_tasks()),
        ("entries", ""): _entries(asker, *workers.peers, asker.bus, asker.registry),
    }


def _entries(*owners: object) -> int:
    """Count what is in the maps, lists, sets and queues that objects lead to."""
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
            *((subject, partial(_held, subject, _HELD)) for subject in SUBJECTS),
            *((subject, partial(_left, subject, _FEW, many)) for subject, many in _MANY.items()),
        ],
        rounds,
    )


MEMORY = Benchmark(
    name="memory",
    title="what workers and jobs hold, and what jobs leave behind",
    method=(
        f"Held is what Python has allocated (tracemalloc) for one of {_HELD:,} workers or jobs in "
        "flight, the task that waits for the job included. Left behind is what there is more after "
        "all jobs than after the first, one after the other: resident memory, registry watches, "
        "tasks, and entries in all maps, lists, sets and queues that the two workers, the bus and "
        "the registry lead to. Every measurement has a process of its own, and all memory is "
        "looked at after a garbage collection."
    ),
    rounds=1,
    run=_run,
)
