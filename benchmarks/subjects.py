"""Whose jobs are measured, and the workers that do them."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

from pipecat.bus import AsyncQueueBus
from pipecat.bus.bus import WorkerBus
from pipecat.bus.messages import (
    BusJobRequestMessage,
    BusMessage,
    BusWorkerReadyMessage,
    BusWorkerRegistryMessage,
)
from pipecat.pipeline.job_context import JobGroupParams, JobParams
from pipecat.pipeline.job_decorator import job as pipecats_job
from pipecat.workers.base_worker import BaseWorker as PipecatBaseWorker
from pipecat.workers.runner import WorkerRunner

from pipecat_jobs import BaseWorker, job
from pipecat_jobs.bus import RoutedBus

#: What the floor is called where subjects are named.
FLOOR = "asyncio, no bus"

_PAYLOAD = {"text": "hello"}


class PipecatsWorker(PipecatBaseWorker):
    """Asks and answers, on Pipecat's own jobs."""

    @pipecats_job(name="echo")
    async def echo(self, message: BusJobRequestMessage) -> Any:
        """Answer at once.

        Args:
            message: The request.
        """
        await self.send_job_response(message.job_id, message.payload)

    @pipecats_job(name="hold")
    async def hold(self, message: BusJobRequestMessage) -> None:
        """Stay in flight until the job is cancelled.

        Args:
            message: The request.
        """
        message.payload["started"].release()
        await asyncio.get_running_loop().create_future()

    @pipecats_job(name="stream")
    async def stream(self, message: BusJobRequestMessage) -> None:
        """Stream as many chunks as the payload says, one in each turn of the loop.

        Args:
            message: The request.
        """
        job_id = message.job_id
        await self.send_job_stream_start(job_id)
        for number in range(message.payload["chunks"]):
            await self.send_job_stream_data(job_id, {"text": f"chunk {number}"})
            await asyncio.sleep(0)
        await self.send_job_stream_end(job_id)


class OurWorker(PipecatsWorker, BaseWorker):
    """The same worker on our jobs."""

    @job(name="echo")
    async def echo(self, message: BusJobRequestMessage) -> dict[str, Any]:
        """Answer at once.

        Args:
            message: The request.

        Returns:
            The answer.
        """
        return message.payload or {}


@dataclass(frozen=True)
class Subject:
    """Jobs and a bus that are measured together.

    Attributes:
        name: What to call them in a report.
        worker: The class that asks and answers.
        bus: The bus.
    """

    name: str
    worker: type[PipecatsWorker]
    bus: Callable[[], WorkerBus]


PIPECATS = Subject("Pipecat's jobs", PipecatsWorker, AsyncQueueBus)
OURS_ON_PIPECATS_BUS = Subject("ours on Pipecat's bus", OurWorker, AsyncQueueBus)
OURS = Subject("ours on RoutedBus", OurWorker, RoutedBus)
SUBJECTS = (PIPECATS, OURS_ON_PIPECATS_BUS, OURS)


@dataclass(frozen=True)
class RunningWorkers:
    """A worker that asks, and the others on its bus, all running.

    Attributes:
        asker: Who asks.
        peers: The others.
        names: Their names.
    """

    asker: PipecatsWorker
    peers: Sequence[PipecatsWorker]
    names: Sequence[str]

    async def job(self, peer: int = 0) -> None:
        """Ask one of the others, and wait for its answer.

        Args:
            peer: Which.
        """
        async with self.asker.job(self.names[peer], params=_ECHO):
            pass

    async def hold(self, started: asyncio.Semaphore) -> None:
        """Ask the first of the others for what it works on until this is cancelled.

        Args:
            started: What it releases when it begins.
        """
        asked = JobParams(name="hold", payload={"started": started})
        async with self.asker.job(self.names[0], params=asked):
            pass

    async def group(self) -> None:
        """Ask all the others, and wait for their answers."""
        async with self.asker.job_group(*self.names, params=_ECHO_OF_ALL):
            pass


_ECHO = JobParams(name="echo", payload=_PAYLOAD)
_ECHO_OF_ALL = JobGroupParams(name="echo", payload=_PAYLOAD)


@asynccontextmanager
async def running(subject: Subject, peers: int) -> AsyncIterator[RunningWorkers]:
    """Run workers for as long as the context is open.

    Args:
        subject: On which jobs and bus.
        peers: How many workers are on the bus beside the one that asks, at least one.

    Yields:
        The workers, every one of them ready.
    """
    bus = subject.bus()
    runner = WorkerRunner(bus=bus, handle_sigint=False)
    asker = subject.worker("asker")
    others = [subject.worker(f"peer {number}") for number in range(peers)]
    ready, started = asyncio.Event(), asyncio.Event()
    runner.add_event_handler("on_ready", lambda *_: ready.set())
    others[-1].add_event_handler("on_activated", lambda *_: started.set())
    await runner.add_workers(asker)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(runner.run(auto_end=False))
        try:
            await ready.wait()
            with _unannounced(bus):
                # As children, since the runner lists all its other workers at each one's start.
                await asker.add_workers(*others, watch=False)
                await started.wait()
            yield RunningWorkers(asker, others, [other.name for other in others])
        finally:
            for other in others:
                await bus.unsubscribe(other)
                await other.stop()
            await runner.cancel()


@contextmanager
def _unannounced(bus: WorkerBus) -> Iterator[None]:
    """Keep Pipecat from telling every worker of every other's start.

    These broadcasts are the square of the number of workers on any bus, half a minute of them for
    a thousand workers on Pipecat's, and no job needs them.
    """
    send = bus.send

    async def send_the_others(message: BusMessage) -> None:
        if not isinstance(message, BusWorkerReadyMessage | BusWorkerRegistryMessage):
            await send(message)

    bus.send = send_the_others
    try:
        yield
    finally:
        del bus.send


async def floor(workers: int = 1) -> None:
    """Do what asyncio itself needs for jobs side by side: a queue, a task and a future for each.

    Args:
        workers: How many.
    """
    loop = asyncio.get_running_loop()

    async def answer(queue: asyncio.Queue[asyncio.Future[None]]) -> None:
        (await queue.get()).set_result(None)

    asked: list[tuple[asyncio.Task[None], asyncio.Future[None]]] = []
    for _ in range(workers):
        queue: asyncio.Queue[asyncio.Future[None]] = asyncio.Queue()
        future: asyncio.Future[None] = loop.create_future()
        asked.append((loop.create_task(answer(queue)), future))
        queue.put_nowait(future)
    for task, future in asked:
        await future
        await task
