"""The implementations of jobs that are measured, and their workers."""

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

#: The name of the floor among the subjects.
FLOOR = "asyncio, no bus"

_PAYLOAD = {"text": "hello"}


class PipecatsWorker(PipecatBaseWorker):
    """A requester and worker on Pipecat's own jobs."""

    @pipecats_job(name="echo")
    async def echo(self, message: BusJobRequestMessage) -> Any:
        """Respond at once."""
        await self.send_job_response(message.job_id, message.payload)

    @pipecats_job(name="hold")
    async def hold(self, message: BusJobRequestMessage) -> None:
        """Stay open until the job is cancelled."""
        message.payload["started"].release()
        await asyncio.get_running_loop().create_future()

    @pipecats_job(name="stream")
    async def stream(self, message: BusJobRequestMessage) -> None:
        """Stream the number of chunks in the payload, one in each turn of the event loop."""
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
        """Respond at once."""
        return message.payload or {}


@dataclass(frozen=True)
class Subject:
    """An implementation of jobs and a bus, which are measured together."""

    name: str
    worker: type[PipecatsWorker]
    bus: Callable[[], WorkerBus]


PIPECATS = Subject("Pipecat's jobs", PipecatsWorker, AsyncQueueBus)
OURS_ON_PIPECATS_BUS = Subject("ours on Pipecat's bus", OurWorker, AsyncQueueBus)
OURS = Subject("ours on RoutedBus", OurWorker, RoutedBus)
SUBJECTS = (PIPECATS, OURS_ON_PIPECATS_BUS, OURS)


@dataclass(frozen=True)
class RunningWorkers:
    """A requester, and the other workers on its bus."""

    requester: PipecatsWorker
    peers: Sequence[PipecatsWorker]
    #: The names of the peers.
    names: Sequence[str]

    async def job(self, peer: int = 0) -> None:
        """Request a job of a peer, and wait for its response."""
        async with self.requester.job(self.names[peer], params=_ECHO):
            pass

    async def hold(self, started: asyncio.Semaphore) -> None:
        """Request a job that stays open until this is cancelled; it releases ``started`` first."""
        params = JobParams(name="hold", payload={"started": started})
        async with self.requester.job(self.names[0], params=params):
            pass

    async def group(self) -> None:
        """Request a job of all peers, and wait for their responses."""
        async with self.requester.job_group(*self.names, params=_ECHO_OF_ALL):
            pass


_ECHO = JobParams(name="echo", payload=_PAYLOAD)
_ECHO_OF_ALL = JobGroupParams(name="echo", payload=_PAYLOAD)


@asynccontextmanager
async def running(subject: Subject, peers: int) -> AsyncIterator[RunningWorkers]:
    """Run a requester and a number of peers, at least one, which are ready when this yields."""
    bus = subject.bus()
    runner = WorkerRunner(bus=bus, handle_sigint=False)
    requester = subject.worker("requester")
    others = [subject.worker(f"peer {number}") for number in range(peers)]
    ready, started = asyncio.Event(), asyncio.Event()
    runner.add_event_handler("on_ready", lambda *_: ready.set())
    others[-1].add_event_handler("on_activated", lambda *_: started.set())
    await runner.add_workers(requester)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(runner.run(auto_end=False))
        try:
            await ready.wait()
            with _unannounced(bus):
                # As children, because the runner lists all its workers when one of them starts.
                await requester.add_workers(*others, watch=False)
                await started.wait()
            yield RunningWorkers(requester, others, [other.name for other in others])
        finally:
            for other in others:
                await bus.unsubscribe(other)
                await other.stop()
            await runner.cancel()


@contextmanager
def _unannounced(bus: WorkerBus) -> Iterator[None]:
    """Suppress the broadcasts that Pipecat sends when a worker starts."""
    # Their number is the square of the number of workers, which takes half a minute for a thousand
    # workers on Pipecat's bus. No job needs them.
    send = bus.send

    async def send_other_messages(message: BusMessage) -> None:
        if not isinstance(message, BusWorkerReadyMessage | BusWorkerRegistryMessage):
            await send(message)

    bus.send = send_other_messages
    try:
        yield
    finally:
        del bus.send


async def floor(workers: int = 1) -> None:
    """Do the least that asyncio needs for concurrent jobs: a queue, a task and a future each."""
    loop = asyncio.get_running_loop()

    async def respond(queue: asyncio.Queue[asyncio.Future[None]]) -> None:
        (await queue.get()).set_result(None)

    requested: list[tuple[asyncio.Task[None], asyncio.Future[None]]] = []
    for _ in range(workers):
        queue: asyncio.Queue[asyncio.Future[None]] = asyncio.Queue()
        future: asyncio.Future[None] = loop.create_future()
        requested.append((loop.create_task(respond(queue)), future))
        queue.put_nowait(future)
    for task, future in requested:
        await future
        await task
