"""Workers that several test files use."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from pipecat.bus.messages import BusJobCancelMessage, BusJobRequestMessage

from pipecat_jobs import BaseWorker, job


class Requester(BaseWorker):
    """A requester that keeps the calls of its hooks, in order."""

    def __init__(self, name: str = "requester", **kwargs: Any):
        super().__init__(name, **kwargs)
        self.hooks: list[tuple[str, Any]] = []
        for event in (
            "on_job_response",
            "on_job_update",
            "on_job_completed",
            "on_job_error",
            "on_job_stream_start",
            "on_job_stream_data",
            "on_job_stream_end",
        ):
            self.add_event_handler(event, self._keep(event))

    def _keep(self, event: str) -> Callable[..., Awaitable[None]]:
        async def keep(worker: BaseWorker, message: Any) -> None:
            self.hooks.append((event, message))

        return keep

    def fired(self) -> list[str]:
        return [event for event, _ in self.hooks]

    async def ask(self, worker_name: str, name: str | None = None, **keywords: Any) -> dict:
        async with self.job(worker_name, name=name, **keywords) as j:
            pass
        return j.response


class Responder(BaseWorker):
    """A worker with a handler for each way a job can end."""

    def __init__(self, name: str = "responder", **kwargs: Any):
        super().__init__(name, **kwargs)
        self.started: asyncio.Queue[str] = asyncio.Queue()
        self.cancelled: list[str] = []
        self.ran: list[str] = []
        self.release = asyncio.Event()
        self.hook_calls: list[BusJobCancelMessage] = []

    async def on_job_cancelled(self, message: BusJobCancelMessage) -> None:
        self.hook_calls.append(message)

    @job(name="echo")
    async def echo(self, message: BusJobRequestMessage) -> dict:
        self.ran.append(message.job_id)
        return {"from": self.name, "payload": message.payload}

    @job(name="wait")
    async def wait_for_release(self, message: BusJobRequestMessage) -> dict:
        self.ran.append(message.job_id)
        self.started.put_nowait(message.job_id)
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.append(message.job_id)
            raise
        return {"from": self.name}

    @job(name="raise")
    async def raise_error(self, message: BusJobRequestMessage) -> dict:
        raise ValueError("no such topic")

    @job(name="silent")
    async def return_nothing(self, message: BusJobRequestMessage) -> None:
        self.started.put_nowait(message.job_id)

    @job(name="count")
    async def count(self, message: BusJobRequestMessage):
        for number in range((message.payload or {}).get("to", 3)):
            yield {"number": number}


class Delegator(BaseWorker):
    """A worker whose handler asks another worker."""

    def __init__(self, name: str, *, asks: str):
        super().__init__(name)
        self.asks = asks

    @job(name="wait")
    async def delegate(self, message: BusJobRequestMessage) -> dict:
        async with self.job(self.asks, name="wait") as j:
            pass
        return j.response


async def until(condition: Callable[[], object], *, timeout: float = 100.0) -> None:
    """Let the loop run until something has happened."""
    async with asyncio.timeout(timeout):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


async def cancelled(task: asyncio.Task[Any]) -> None:
    """Cancel a task and check that it ends as cancelled."""
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        return
    raise AssertionError("the task swallowed its cancellation")


class Foreign(BaseException):
    """Like PyO3's PanicException, this is not an Exception."""


RAISED = [
    ValueError("a value"),
    Foreign("foreign"),
    BaseExceptionGroup("several", [Foreign("foreign")]),
    GeneratorExit(),
    SystemExit(1),
    asyncio.CancelledError("of a library's own"),
]
