"""Workers with the same job handlers, with and without this package's mixin.

A test file takes the ``harness`` fixture with ``harness = peers.harness``.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pipecat.bus import WorkerBus
from pipecat.bus.messages import BusJobRequestMessage
from pipecat.pipeline.job_context import JobGroupParams, JobParams, JobStatus
from pipecat.pipeline.job_decorator import job as pipecat_job
from pipecat.services.openai.llm import OpenAILLMService
from pipecat.workers.base_worker import BaseWorker as PlainWorker

from pipecat_jobs import JobsMixin
from pipecat_jobs.testing import JobHarness
from support.buses import BusHarness


class PlainPeer(PlainWorker):
    """A plain Pipecat worker: asks, and responds in each of the ways that Pipecat has."""

    def __init__(self, name: str, **kwargs: Any):
        super().__init__(name, **kwargs)
        self.started: asyncio.Queue[str] = asyncio.Queue()
        self.cancelled: list[str] = []
        self.stopped: asyncio.Queue[str] = asyncio.Queue()
        self.release = asyncio.Event()
        self.group_id: asyncio.Future[str] = asyncio.Future()
        self.errors: asyncio.Queue[Any] = asyncio.Queue()

    async def ask(self, target: str, name: str | None = None, **params: Any) -> dict:
        async with self.job(target, params=JobParams(name=name, **params)) as j:
            if not self.group_id.done():
                self.group_id.set_result(j.job_id)
        return j.response

    async def ask_group(self, *targets: str, name: str, **params: Any) -> dict[str, dict]:
        async with self.job_group(*targets, params=JobGroupParams(name=name, **params)) as jg:
            pass
        return jg.responses

    async def events(self, target: str, name: str) -> tuple[list[tuple[str, Any]], dict]:
        """Ask, and collect the events before the response."""
        async with self.job(target, params=JobParams(name=name)) as j:
            events = [(event.type, event.data) async for event in j]
        return events, j.response

    async def on_job_error(self, message: Any) -> None:
        self.errors.put_nowait(message)

    @pipecat_job(name="echo")
    async def echo(self, message: BusJobRequestMessage) -> None:
        await self.send_job_response(
            message.job_id, {"from": self.name, "payload": message.payload}
        )

    @pipecat_job(name="urgent")
    async def respond_urgently(self, message: BusJobRequestMessage) -> None:
        await self.send_job_response(message.job_id, {"urgent": True}, urgent=True)

    @pipecat_job(name="update")
    async def update(self, message: BusJobRequestMessage) -> None:
        for step in (1, 2):
            await self.send_job_update(message.job_id, {"step": step})
        # The bus keeps the order only within one priority.
        await self.send_job_response(message.job_id, {"steps": 2})

    @pipecat_job(name="stream")
    async def stream(self, message: BusJobRequestMessage) -> None:
        await self.send_job_stream_start(message.job_id, {"kind": "text"})
        for chunk in ("Hello", "there"):
            await self.send_job_stream_data(message.job_id, {"text": chunk})
        await self.send_job_stream_end(message.job_id, {"chunks": 2})

    @pipecat_job(name="fail")
    async def fail(self, message: BusJobRequestMessage) -> None:
        await self.send_job_response(
            message.job_id, {"error": "no such city"}, status=JobStatus.FAILED
        )

    @pipecat_job(name="error")
    async def err(self, message: BusJobRequestMessage) -> None:
        await self.send_job_response(message.job_id, {"code": 7}, status=JobStatus.ERROR)

    @pipecat_job(name="wait")
    async def wait_for_release(self, message: BusJobRequestMessage) -> None:
        self.started.put_nowait(message.job_id)
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.append(message.job_id)
            self.stopped.put_nowait(message.job_id)
            raise
        await self.send_job_response(message.job_id, {"from": self.name})

    @pipecat_job(name="silent")
    async def say_nothing(self, message: BusJobRequestMessage) -> None:
        self.started.put_nowait(message.job_id)

    @pipecat_job(name="fail or wait")
    async def fail_or_wait(self, message: BusJobRequestMessage) -> None:
        """Fail where the payload says so, wait elsewhere."""
        if (message.payload or {}).get("fails") == self.name:
            await self.fail(message)
        else:
            await self.wait_for_release(message)


class OurPeer(PlainPeer, JobsMixin):
    """The same worker with the mixin on, its handlers still marked with Pipecat's ``@job``."""


PAIRS = [
    pytest.param(OurPeer, PlainPeer, id="ours-asks-plain"),
    pytest.param(PlainPeer, OurPeer, id="plain-asks-ours"),
]


@pytest.fixture
async def harness(bus: WorkerBus) -> AsyncIterator[JobHarness]:
    # Pipecat's own job() leaves a registry watch behind on every call.
    async with BusHarness(bus, check_watches=False) as harness:
        yield harness


async def cancel(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait for its end."""
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()


@asynccontextmanager
async def llm_services() -> AsyncIterator[Callable[[str], OpenAILLMService]]:
    """Give LLM services for a base URL, whose connections are closed at the end.

    Pipecat leaves that to the end of the process.
    """
    services: list[OpenAILLMService] = []

    def make(base_url: str) -> OpenAILLMService:
        settings = OpenAILLMService.Settings(model="scripted")
        services.append(OpenAILLMService(api_key="test", base_url=base_url, settings=settings))
        return services[-1]

    yield make
    for service in services:
        await service._client.close()
