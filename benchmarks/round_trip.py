"""What one job costs, and what it costs with many workers on the bus."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from pipecat.bus import AsyncQueueBus
from pipecat.bus.bus import WorkerBus
from pipecat.bus.messages import BusJobRequestMessage
from pipecat.pipeline.job_context import JobParams
from pipecat.pipeline.job_decorator import job as pipecats_job
from pipecat.workers.base_worker import BaseWorker as PipecatBaseWorker
from pipecat.workers.runner import WorkerRunner

from benchmarks.benchmark import Benchmark, Figure, Spread
from pipecat_jobs import BaseWorker, job
from pipecat_jobs.bus import RoutedBus

#: How many workers are on the bus beside the two of the job.
_IDLE = (0, 10, 100, 1_000)

#: Rounds of jobs that are not counted.
_WARM_UP = 3

#: Jobs in a row that make a sample, and how many of them where each wakes every worker.
_JOBS = 20
_DELIVERIES_PER_SAMPLE = 4_000

_PIPECATS = "Pipecat's jobs"
_OURS = "ours on Pipecat's bus"

#: Does one job and waits for its answer.
_OneJob = Callable[[], Awaitable[None]]


class _PipecatAnswerer(PipecatBaseWorker):
    @pipecats_job(name="echo")
    async def echo(self, message: BusJobRequestMessage) -> None:
        await self.send_job_response(message.job_id, message.payload)


class _Answerer(BaseWorker):
    @job(name="echo")
    async def echo(self, message: BusJobRequestMessage) -> dict[str, Any]:
        return message.payload or {}


async def _floor_job() -> None:
    """What asyncio itself needs: a queue, a task, a future."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[asyncio.Future[None]] = asyncio.Queue()

    async def answer() -> None:
        (await queue.get()).set_result(None)

    answering = asyncio.create_task(answer())
    future: asyncio.Future[None] = loop.create_future()
    queue.put_nowait(future)
    await future
    await answering


@asynccontextmanager
async def _workers(
    kind: type[PipecatBaseWorker], answerer: PipecatBaseWorker, bus: WorkerBus, idle: int
) -> AsyncIterator[_OneJob]:
    runner = WorkerRunner(bus=bus, handle_sigint=False)
    asker = kind("asker")
    ready = asyncio.Event()
    runner.add_event_handler("on_ready", lambda *_: ready.set())
    await runner.add_workers(asker, answerer, *(kind(f"idle {number}") for number in range(idle)))
    asked = JobParams(name="echo", payload={"text": "hello"})

    async def one_job() -> None:
        async with asker.job("answerer", params=asked):
            pass

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(runner.run(auto_end=False))
        try:
            await ready.wait()
            yield one_job
        finally:
            await runner.cancel()


async def _time(one_job: _OneJob, jobs: int) -> float:
    """Milliseconds a job takes, on the mean of some in a row."""
    clock = asyncio.get_running_loop().time
    began = clock()
    for _ in range(jobs):
        await one_job()
    return 1000 * (clock() - began) / jobs


async def _measure(idle: int, rounds: int) -> list[Figure]:
    figures: dict[str, list[float]] = {}
    async with AsyncExitStack() as stack:
        subjects: dict[str, _OneJob] = {"asyncio, no bus": _floor_job}
        for subject, kind, answerer, bus in (
            (_PIPECATS, PipecatBaseWorker, _PipecatAnswerer("answerer"), AsyncQueueBus()),
            (_OURS, BaseWorker, _Answerer("answerer"), AsyncQueueBus()),
            ("ours on RoutedBus", BaseWorker, _Answerer("answerer"), RoutedBus()),
        ):
            workers = _workers(kind, answerer, bus, idle)
            subjects[subject] = await stack.enter_async_context(workers)
        for number in range(-_WARM_UP, rounds):
            for subject, one_job in subjects.items():
                wakes_all = subject in (_PIPECATS, _OURS)
                jobs = min(_JOBS, _DELIVERIES_PER_SAMPLE // (idle + 2)) if wakes_all else _JOBS
                took = await _time(one_job, max(1, jobs))
                if number >= 0:
                    figures.setdefault(subject, []).append(took)
    quantity = f"one job, {idle + 2} workers"
    return [Figure(quantity, name, "ms", Spread.of(took)) for name, took in figures.items()]


async def _run(rounds: int) -> list[Figure]:
    return [figure for idle in _IDLE for figure in await _measure(idle, rounds)]


ROUND_TRIP = Benchmark(
    name="round-trip",
    title="one worker asks another, with more and more others on the bus",
    method=(
        "From the call to the answer, in one process; the mean of up to "
        f"{_JOBS} jobs in a row is one sample. The subjects take turns within each round. The "
        "floor is a queue, a task and a future, without any bus or job."
    ),
    rounds=10,
    run=_run,
)
