"""Pipecat's worker, as the two halves need it."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from pipecat.bus.messages import BusMessage
from pipecat.workers.base_worker import BaseWorker

from pipecat_jobs._protocol.runtime import StartableBus
from pipecat_jobs._worker.others import OtherWorkers
from pipecat_jobs._worker.tasks import start_task
from pipecat_jobs.errors import WorkerNotAddedError

Result = TypeVar("Result")


class WorkerRuntime:
    """The :class:`~pipecat_jobs._protocol.runtime.JobRuntime` of a Pipecat worker."""

    __slots__ = ("_worker", "_workers", "kind", "name")

    def __init__(self, worker: BaseWorker):
        self.name = worker.name
        self.kind = type(worker).__name__
        self._worker = worker
        self._workers: OtherWorkers | None = None

    @property
    def workers(self) -> OtherWorkers:
        """The workers it can ask."""
        try:
            registry = self._worker.registry
        except RuntimeError as error:
            raise WorkerNotAddedError(self.name) from error
        workers = self._workers
        if workers is None or workers.registry is not registry:
            workers = self._workers = OtherWorkers(self._worker, registry)
        return workers

    @property
    def bus(self) -> StartableBus | None:
        """Its bus, if that says whether messages can be sent."""
        bus = self._worker.bus
        return bus if isinstance(bus, StartableBus) else None

    @staticmethod
    def clock() -> Callable[[], float]:
        """Give the event loop's clock."""
        return asyncio.get_running_loop().time

    def create_task(
        self, coroutine: Coroutine[Any, Any, Result], name: str
    ) -> asyncio.Task[Result]:
        """Start a task of the worker, which begins after this call has returned."""
        return start_task(self._worker, coroutine, name)

    def send(self, message: BusMessage) -> Awaitable[None]:
        """Send a message by the worker's own method, which bots may extend."""
        return self._worker.send_bus_message(message)
