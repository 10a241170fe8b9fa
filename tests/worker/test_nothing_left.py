"""After any number of jobs with any kind of end, neither side keeps anything of them."""

import asyncio
import contextlib
import gc
import tracemalloc

import pytest
from loguru import logger
from pipecat.bus.messages import BusJobRequestMessage
from support.workers import Requester, Responder, cancelled

from pipecat_jobs import BaseWorker, JobError, job
from pipecat_jobs.testing import ChaosBus, JobHarness

pytestmark = pytest.mark.every_bus


@pytest.fixture
def quiet():
    """Logging would take most of the time of a test that runs thousands of jobs."""
    logger.disable("pipecat_jobs")
    logger.disable("pipecat")
    yield
    logger.enable("pipecat_jobs")
    logger.enable("pipecat")


@pytest.mark.not_on("redis", reason="it counts the bus's own tasks, which begin when needed")
@pytest.mark.parametrize(
    ("name", "keywords"),
    [
        ("echo", {}),
        ("raise", {}),
        ("unknown", {}),
        ("count", {}),
        ("wait", {"timeout": 0.005}),
        ("echo", {"timeout": 60}),
    ],
)
async def test_nothing_is_left_of_a_job_after_any_kind_of_end(
    job_harness: JobHarness, name: str, keywords: dict
):
    requester = Requester()
    await job_harness.start(requester, Responder())
    tasks = len(job_harness.runner.task_manager.current_tasks())
    with contextlib.suppress(JobError):
        await requester.ask("responder", name, **keywords)
    await job_harness.settle()
    assert job_harness.left_behind() == []
    assert len(job_harness.runner.task_manager.current_tasks()) == tasks


async def test_nothing_is_left_of_a_deadline_that_was_not_needed(job_harness: JobHarness):
    requester = Requester()
    await job_harness.start(requester, Responder())
    loop = asyncio.get_running_loop()
    timers: list[asyncio.TimerHandle] = []
    call_at = loop.call_at

    def keep(*args, **kwargs) -> asyncio.TimerHandle:
        timers.append(call_at(*args, **kwargs))
        return timers[-1]

    loop.call_at = keep  # type: ignore[method-assign]
    await requester.ask("responder", "echo", timeout=3600)
    assert [timer.cancelled() for timer in timers if timer.when() > loop.time() + 60] == [True]


@pytest.mark.parametrize("rounds", [300, pytest.param(700, marks=pytest.mark.slow)])
async def test_nothing_is_left_of_thousands_of_jobs(quiet, rounds: int):
    """After many jobs of every kind, memory is the same as after the first third of them."""

    class Light(BaseWorker):
        @job(name="echo")
        async def echo(self, message: BusJobRequestMessage) -> dict:
            return {"n": 1}

        @job(name="raise")
        async def fail(self, message: BusJobRequestMessage) -> dict:
            raise ValueError("no")

        @job(name="wait")
        async def wait_for_ever(self, message: BusJobRequestMessage) -> dict:
            await asyncio.Event().wait()
            return {}

    async with JobHarness(ChaosBus(record=False)) as harness:
        requester, light = BaseWorker("requester"), Light("light")
        await harness.start(requester, light)

        async def run(count: int) -> int:
            for _ in range(count):
                async with requester.job("light", name="echo"):
                    pass
                try:
                    async with requester.job("light", name="raise"):
                        pass
                except JobError:
                    pass
                call = asyncio.create_task(requester.request_job("light", name="wait"))
                await requester.cancel_job_group(await call)
            await harness.settle()
            gc.collect()
            return tracemalloc.get_traced_memory()[0]

        tracemalloc.start()
        try:
            before = await run(rounds)
            after = await run(2 * rounds)
        finally:
            tracemalloc.stop()
        assert after - before < 70 * 2 * rounds, f"{after - before} bytes more"


async def test_nothing_is_left_of_requesters_cancelled_at_every_point(
    chaos_harness: JobHarness, chaos_bus: ChaosBus
):
    """Cancels the requester after each number of steps of the loop, from the first to the last."""
    requester, responder = Requester(), Responder()
    await chaos_harness.start(requester, responder)
    chaos_bus.duplicate(BusJobRequestMessage)
    for steps in range(60):
        call_task = asyncio.create_task(requester.ask("responder", "echo"))
        for _ in range(steps):
            await asyncio.sleep(0)
        if call_task.done():
            break
        await cancelled(call_task)
        await chaos_harness.settle()
        assert chaos_harness.left_behind() == []
    else:
        raise AssertionError("the job never got done")
