"""Jobs behave the same under ``asyncio.eager_task_factory`` (Python 3.12)."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from pipecat.frames.frames import LLMMessagesAppendFrame
from support.redis.processes import LONG_LEASE, Process
from support.tools_stage import NewLLM, new_llm, tool_results
from support.workers import Requester, Responder

from pipecat_jobs import (
    BaseWorker,
    JobError,
    JobTimeoutError,
    LLMContextWorker,
    RoutedBus,
    job,
    job_tool,
)
from pipecat_jobs._protocol.tasks import deferred
from pipecat_jobs._worker.tasks import start_task
from pipecat_jobs.bus.redis import EmbeddedRedis, RedisStreamsBus
from pipecat_jobs.testing import JobHarness, ScriptedLLMServer, ToolCall

__all__ = ["new_llm"]

pytestmark = pytest.mark.skipif(
    sys.version_info < (3, 12), reason="Python has eager tasks from 3.12 on"
)


@pytest.fixture(autouse=True)
async def eager_tasks() -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()
    loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]
    yield
    loop.set_task_factory(None)


class AtOnce(BaseWorker):
    """A worker whose handlers end or raise before their first await."""

    def __init__(self, name: str = "at_once"):
        super().__init__(name)
        self.most = self.open = 0

    @job(name="one", max_concurrency=1)
    async def one(self, message: Any) -> dict:
        self.open += 1
        self.most = max(self.most, self.open)
        self.open -= 1
        return {"ok": True}

    @job(name="later", max_concurrency=1)
    async def later(self, message: Any) -> None:
        self.create_task(self.send_job_response(message.job_id, {"ok": "later"}), "respond")

    @job(name="raises")
    async def raises(self, message: Any) -> dict:
        raise ValueError("at once")

    @job(name="numbers")
    async def numbers(self, message: Any) -> AsyncIterator[dict]:
        for number in range(3):
            yield {"number": number}

    @job(name="nested")
    async def nested(self, message: Any) -> dict:
        async with self.job("responder", name="echo", timeout=60) as j:
            pass
        return j.response


@asynccontextmanager
async def on_bus(kind: str, *workers: BaseWorker) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        if kind == "redis":
            server = await stack.enter_async_context(EmbeddedRedis(start_timeout=100.0))
            started = [
                await stack.enter_async_context(
                    Process(RedisStreamsBus(server.url, channel="c", lease=LONG_LEASE), worker)
                )
                for worker in workers
            ]
            for process in started:
                await process.wait_until_known(*(worker.name for worker in workers))
        else:
            bus = RoutedBus() if kind == "routed" else None
            harness = await stack.enter_async_context(JobHarness(bus, timeout=60))
            await harness.start(*workers)
        yield


async def until(happened: Callable[[], bool]) -> None:
    while not happened():  # noqa: ASYNC110
        await asyncio.sleep(0)


@pytest.mark.parametrize("kind", ["pipecat", "routed", "redis"])
async def test_jobs_and_runners_end_as_without_eager_tasks(kind: str):
    requester, responder, at_once = Requester(), Responder(), AtOnce()
    async with asyncio.timeout(120), on_bus(kind, requester, responder, at_once):
        for _ in range(3):
            assert await requester.ask("at_once", "one", timeout=60) == {"ok": True}
        assert await requester.ask("at_once", "later", timeout=60) == {"ok": "later"}
        assert await requester.ask("at_once", "later", timeout=60) == {"ok": "later"}
        assert (await requester.ask("at_once", "nested", timeout=60))["from"] == "responder"
        with pytest.raises(JobError, match="at once"):
            await requester.ask("at_once", "raises", timeout=60)
        async with requester.job("at_once", name="numbers", timeout=60) as j:
            chunks = [event.data async for event in j if event.data]
        assert chunks == [{"number": number} for number in range(3)]
        assert at_once.most == 1
        assert not at_once.active_jobs
        assert not requester.job_groups


@pytest.mark.parametrize("kind", ["pipecat", "routed", "redis"])
async def test_a_cancel_reaches_the_handler(kind: str):
    requester, responder = Requester(), Responder()
    async with asyncio.timeout(120), on_bus(kind, requester, responder):
        asking = asyncio.create_task(requester.ask("responder", "wait", timeout=60))
        job_id = await responder.started.get()
        asking.cancel()
        await asyncio.wait({asking})
        await until(lambda: job_id in responder.cancelled)
        with pytest.raises(JobTimeoutError):
            await requester.ask("responder", "wait", timeout=0.05)


async def test_hooks_run_in_order_and_not_within_the_call_that_delivers(job_harness: JobHarness):
    requester = Requester()
    await job_harness.start(requester, AtOnce())
    await requester.request_job("at_once", name="numbers", timeout=60)
    async with asyncio.timeout(60):
        await until(lambda: "on_job_completed" in requester.fired())
    numbers = [m.data for event, m in requester.hooks if event == "on_job_stream_data"]
    assert numbers == [{"number": number} for number in range(3)]
    assert requester.fired()[0] == "on_job_stream_start"


class Host(LLMContextWorker):
    @job_tool("responder", job="echo")
    async def look_up(self, word: str):
        """Look a word up."""
        return {"word": word}


async def test_a_tool_that_asks_has_its_result_in_the_context(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    scripted_llm.on("look", ToolCall("look_up", {"word": "eager"}), "It means keen.")
    host = Host("host", llm=new_llm(), active=True)
    await job_harness.start(host, Responder())
    await host.queue_frame(LLMMessagesAppendFrame([{"role": "user", "content": "look"}], True))
    async with asyncio.timeout(60):
        *_, last = await scripted_llm.wait_for_requests(2)
        await last.wait_ended()
    assert tool_results(last) == [{"from": "responder", "payload": {"word": "eager"}}]


async def test_a_task_begins_after_the_call_that_starts_it(job_harness: JobHarness):
    worker, log = BaseWorker("w"), list[str]()
    await job_harness.start(worker)

    async def run() -> None:
        log.append("begun")

    task = start_task(worker, run(), "run")
    log.append("started")
    await task
    assert log == ["started", "begun"]
    assert task.get_name().endswith("::run")


async def test_a_task_that_is_cancelled_before_it_begins_leaves_no_warning():
    async def never() -> None:
        raise AssertionError("it has begun")

    task = asyncio.create_task(deferred(never()))
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
