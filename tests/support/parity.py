"""A bench for workers of Pipecat and ours, which does not run them.

A test file takes the fixtures with ``bench = parity.bench`` and the like.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pipecat.bus.messages import BusJobRequestMessage, BusJobResponseMessage, BusMessage
from pipecat.pipeline.job_context import JobStatus
from pipecat.registry import WorkerRegistry
from pipecat.registry.types import WorkerReadyData
from pipecat.utils.asyncio.task_manager import TaskManager
from pipecat.workers.base_worker import BaseWorker as PlainWorker
from pipecat.workers.runner import WorkerRunner

from pipecat_jobs import BaseWorker
from pipecat_jobs.testing import ChaosBus


class Bench:
    """Workers that are attached and set up but never run, as Pipecat's users test theirs."""

    def __init__(self) -> None:
        self.bus = ChaosBus()
        self.tasks = TaskManager(loop=asyncio.get_running_loop())
        self.registry = WorkerRegistry(runner_name="bench")
        self.runner = WorkerRunner(bus=self.bus, handle_sigint=False)
        self.workers: list[PlainWorker] = []

    async def add(self, *workers: PlainWorker) -> None:
        for worker in workers:
            await worker.attach(registry=self.registry, bus=self.bus, worker_runner=self.runner)
            await worker.setup(self.tasks)
            await self.ready(worker.name)
        self.workers += workers

    async def ready(self, *names: str) -> None:
        for name in names:
            await self.registry.register(WorkerReadyData(worker_name=name, runner="bench"))

    async def settle(self) -> None:
        """Let the loop run until no callback is ready."""
        for _ in range(50):
            await asyncio.sleep(0)

    def sent(self, kind: type[BusMessage]) -> list[Any]:
        return [message for message in self.bus.sent if isinstance(message, kind)]


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    await bench.bus.setup(bench.tasks)
    yield bench
    for worker in bench.workers:
        await worker.cleanup()
    await bench.bus.stop()


@pytest.fixture(params=[PlainWorker, BaseWorker], ids=["pipecat", "ours"])
def worker_class(request: pytest.FixtureRequest) -> type[PlainWorker]:
    return request.param


def listen(worker: PlainWorker, event: str) -> list[Any]:
    """Keep the arguments of an event."""
    got: list[Any] = []

    async def keep(_: PlainWorker, message: Any) -> None:
        got.append(message)

    worker.add_event_handler(event, keep)
    return got


def request(job_id: str = "j", name: str | None = None, **fields: Any) -> BusJobRequestMessage:
    return BusJobRequestMessage(
        source="requester", target="worker", job_id=job_id, job_name=name, **fields
    )


def response(source: str, job_id: str, **fields: Any) -> BusJobResponseMessage:
    fields = {"status": JobStatus.COMPLETED, **fields}
    return BusJobResponseMessage(source=source, target="requester", job_id=job_id, **fields)
