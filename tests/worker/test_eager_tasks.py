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
from support.workers import Answerer, Asker

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
        self.create_task(self.send_job_response(message.job_id, {"ok": "later"}), "answer")

    @job(name="raises")
    async def raises(self, message: Any) -> dict:
        raise ValueError("at once")

    @job(name="numbers")
    async def numbers(self, message: Any) -> AsyncIterator[dict]:
        for number in range(3):
            yield {"number": number}

    @job(name="nested")
    async def nested(self, message: Any) -> dict:
        async with self.job("answerer", name="echo", timeout=60) as j:
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
    asker, answerer, at_once = Asker(), Answerer(), AtOnce()
    async with asyncio.timeout(120), on_bus(kind, asker, answerer, at_once):
        for _ in range(3):
            assert await asker.ask("at_once", "one", timeout=60) == {"ok": True}
        assert await asker.ask("at_once", "later", timeout=60) == {"ok": "later"}
        assert await asker.ask("at_once", "later", timeout=60) == {"ok": "later"}
        assert (await asker.ask("at_once", "nested", timeout=60))["from"] == "answerer"
        with pytest.raises(JobError, match="at once"):
            await asker.ask("at_once", "raises", timeout=60)
        async with asker.job("at_once", name="numbers", timeout=60) as j:
            chunks = [event.data async for event in j if event.data]
        assert chunks == [{"number": number} for number in range(3)]
        assert at_once.most == 1
        assert not at_once.active_jobs
        assert not asker.job_groups


@pytest.mark.parametrize("kind", ["pipecat", "routed", "redis"])
async def test_a_cancel_reaches_the_handler(kind: str):
    asker, answerer = Asker(), Answerer()
    async with asyncio.timeout(120), on_bus(kind, asker, answerer):
        asking = asyncio.create_task(asker.ask("answerer", "wait", timeout=60))
        job_id = await answerer.started.get()
        asking.cancel()
        await asyncio.wait({asking})
        await until(lambda: job_id in answerer.cancelled)
        with pytest.raises(JobTimeoutError):
            await asker.ask("answerer", "wait", timeout=0.05)


async def test_hooks_run_in_order_and_not_within_the_call_that_delivers(job_harness: JobHarness):
    asker = Asker()
    await job_harness.start(asker, AtOnce())
    await asker.request_job("at_once", name="numbers", timeout=60)
    async with asyncio.timeout(60):
        await until(lambda: "on_job_completed" in asker.fired())
    numbers = [m.data for event, m in asker.hooks if event == "on_job_stream_data"]
    assert numbers == [{"number": number} for number in range(3)]
    assert asker.fired()[0] == "on_job_stream_start"


class Host(LLMContextWorker):
    @job_tool("answerer", job="echo")
    async def look_up(self, word: str):
        """Look a word up."""
        return {"word": word}


async def test_a_tool_that_asks_has_its_result_in_the_context(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    scripted_llm.on("look", ToolCall("look_up", {"word": "eager"}), "It means keen.")
    host = Host("host", llm=new_llm(), active=True)
    await job_harness.start(host, Answerer())
    await host.queue_frame(LLMMessagesAppendFrame([{"role": "user", "content": "look"}], True))
    async with asyncio.timeout(60):
        *_, last = await scripted_llm.wait_for_requests(2)
        await last.wait_ended()
    assert tool_results(last) == [{"from": "answerer", "payload": {"word": "eager"}}]


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
