"""A raised ``BaseException`` that is not an ``Exception`` also ends the job as an error."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from pipecat.bus import AsyncQueueBus, WorkerBus
from pipecat.bus.messages import BusJobRequestMessage, BusJobResponseMessage, BusMessage
from support.buses import BusHarness
from support.workers import Requester, Responder, until

from pipecat_jobs import BaseWorker, JobError, OutcomeStatus, job
from pipecat_jobs._protocol.hooks import REQUESTER_EVENTS
from pipecat_jobs.testing import JobHarness

pytestmark = pytest.mark.every_bus

#: Seconds in which even a busy machine does a job.
LONG = 100.0


class PanicException(BaseException):
    """PyO3 raises an exception of that name when Rust code in a Python package panics."""


class Unprintable(Exception):
    """An exception whose text cannot be read."""

    def __str__(self) -> str:
        raise ValueError("no words")

    __repr__ = __str__


#: Functions that make the exceptions, by name.
RAISED: dict[str, Callable[[], BaseException]] = {
    "panic": lambda: PanicException("rust panicked"),
    "group": lambda: BaseExceptionGroup("several", [PanicException("rust panicked")]),
    "generator exit": lambda: GeneratorExit("closed"),
    "system exit": lambda: SystemExit(3),
    "unprintable": Unprintable,
}
ASKED = ["plain", "stream", "first in the stream", "one at a time", "one by one", None]


class Raising(BaseWorker):
    """A worker that raises in every kind of handler."""

    def __init__(self, error: BaseException | None = None):
        super().__init__("raising")
        self.error = error

    def fail(self) -> Any:
        if self.error is not None:
            raise self.error
        return {"fine": True}

    @job(name="plain")
    async def plain(self, message: BusJobRequestMessage) -> dict:
        return self.fail()

    @job(name="stream")
    async def stream(self, message: BusJobRequestMessage):
        yield {"n": 1}
        yield self.fail()

    @job(name="first in the stream")
    async def stream_nothing(self, message: BusJobRequestMessage):
        yield self.fail()

    @job(name="one at a time", max_concurrency=1)
    async def one_at_a_time(self, message: BusJobRequestMessage) -> dict:
        return self.fail()

    @job(name="one by one", sequential=True)
    async def one_by_one(self, message: BusJobRequestMessage) -> dict:
        return self.fail()

    async def on_job_request(self, message: BusJobRequestMessage) -> None:
        await self.send_job_response(message.job_id, self.fail())


@pytest.mark.parametrize("name", ASKED)
@pytest.mark.parametrize("raised", RAISED)
async def test_a_base_exception_in_a_handler_ends_the_job_as_error(
    job_harness: JobHarness, raised: str, name: str | None
):
    error = RAISED[raised]()
    requester, raising = Requester(), Raising(error)
    await job_harness.start(requester, raising)
    for _ in range(2):
        with pytest.raises(JobError) as caught:
            await requester.ask("raising", name, timeout=LONG)
        outcome = caught.value.outcomes["raising"]
        assert outcome.status is OutcomeStatus.ERROR
        assert outcome.error is not None
        assert outcome.error.type == type(error).__name__
        assert "fail()" in (outcome.error.traceback or "")
    assert not raising.active_jobs
    raising.error = None
    if name is not None:
        await requester.ask("raising", name, timeout=LONG)


async def test_a_base_exception_in_a_cancelled_handler_still_ends_the_job(
    job_harness: JobHarness, job_log
):
    class Cleaning(Responder):
        @job(name="clean")
        async def clean(self, message: BusJobRequestMessage) -> None:
            self.started.put_nowait(message.job_id)
            try:
                await asyncio.Event().wait()
            finally:
                raise PanicException("in the clean-up")

    requester, cleaning = Requester(), Cleaning()
    await job_harness.start(requester, cleaning)
    job_id = await requester.request_job("responder", name="clean")
    await cleaning.started.get()
    await requester.cancel_job_group(job_id)
    await until(lambda: cleaning.hook_calls and not cleaning.active_jobs)
    assert any(isinstance(record.exception, PanicException) for record in job_log)


async def test_sys_exit_in_a_handler_is_logged_as_critical_and_the_process_goes_on(
    job_harness: JobHarness, job_log
):
    requester, raising = Requester(), Raising(SystemExit(3))
    await job_harness.start(requester, raising)
    with pytest.raises(JobError, match="SystemExit"):
        await requester.ask("raising", "plain", timeout=LONG)
    (record,) = [r for r in job_log if isinstance(r.exception, SystemExit)]
    assert record.level == "CRITICAL"


@pytest.mark.parametrize("place", ["plain", "stream", "hook", "event handler"])
def test_a_keyboard_interrupt_in_a_handler_ends_the_loop_and_reaches_the_requester(place: str):
    """If the program catches it and goes on with its loop, no job is left open."""

    class Interrupted(Requester):
        async def on_job_update(self, message: Any) -> None:
            if place == "hook":
                raise KeyboardInterrupt

    class Worker(Raising):
        @job(name="update")
        async def update(self, message: BusJobRequestMessage) -> dict:
            await self.send_job_update(message.job_id, {})
            return {}

    loop = asyncio.new_event_loop()
    try:
        harness = loop.run_until_complete(entered())
        raising = Worker(KeyboardInterrupt())
        requester = Interrupted() if place == "hook" else Requester()
        if place == "event handler":

            @requester.event_handler("on_job_update")
            def interrupt(worker: BaseWorker, message: object) -> None:
                raise KeyboardInterrupt

        loop.run_until_complete(harness.start(requester, raising))
        name = place if place in ("plain", "stream") else "update"
        call_task = loop.create_task(requester.ask("raising", name, timeout=LONG))
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(call_task)
        if name == "update":
            assert loop.run_until_complete(call_task) == {}
        else:
            with pytest.raises(JobError, match="KeyboardInterrupt"):
                loop.run_until_complete(call_task)
        assert not raising.active_jobs
        loop.run_until_complete(harness.__aexit__(None, None, None))
    finally:
        loop.close()


async def entered() -> JobHarness:
    return await JobHarness().__aenter__()


@pytest.mark.parametrize("event", REQUESTER_EVENTS)
@pytest.mark.parametrize("raised", RAISED)
async def test_a_base_exception_in_a_hook_is_logged_and_changes_nothing(
    job_harness: JobHarness, job_log, event: str, raised: str
):
    error = RAISED[raised]()

    async def broken(self: BaseWorker, message: object) -> None:
        raise error

    def broken_handler(worker: BaseWorker, message: object) -> None:
        raise error

    class Talking(Responder):
        @job(name="talk")
        async def talk(self, message: BusJobRequestMessage):
            await self.send_job_update(message.job_id, {})
            yield {"n": 1}

    requester = type("Broken", (Requester,), {event: broken})("requester")
    requester.add_event_handler(event, broken_handler)
    await job_harness.start(requester, Talking())
    assert await requester.ask("responder", "talk", timeout=LONG) == {}
    with pytest.raises(JobError, match="no such topic"):
        await requester.ask("responder", "raise", timeout=LONG)
    await job_harness.settle()
    level = "CRITICAL" if raised == "system exit" else "ERROR"
    levels = [record.level for record in job_log if record.exception is error]
    assert len(levels) >= 2
    assert set(levels) == {level}


async def test_a_base_exception_in_on_job_cancelled_lets_the_job_end(job_harness: JobHarness):
    class Broken(Responder):
        async def on_job_cancelled(self, message: Any) -> None:
            raise PanicException("in the hook")

    requester, broken = Requester(), Broken()
    await job_harness.start(requester, broken)
    job_id = await requester.request_job("responder", name="wait")
    await broken.started.get()
    await requester.cancel_job_group(job_id)
    await until(lambda: not broken.active_jobs)


class PanickingBus(AsyncQueueBus):
    """A bus that panics at a message, as one with a serializer in Rust may."""

    def __init__(self) -> None:
        super().__init__()
        self.panics_at: Callable[[BusMessage], bool] = lambda message: False

    async def publish(self, message: BusMessage) -> None:
        if self.panics_at(message):
            raise PanicException("cannot encode")
        await super().publish(message)


async def test_a_base_exception_of_a_bus_that_refuses_a_response_is_reported_in_short():
    def is_response(message: BusMessage) -> bool:
        return isinstance(message, BusJobResponseMessage) and message.response == {"fine": True}

    bus = PanickingBus()
    bus.panics_at = is_response
    async with JobHarness(bus) as harness:
        requester = Requester()
        await harness.start(requester, Raising())
        with pytest.raises(JobError, match="PanicException"):
            await requester.ask("raising", "plain", timeout=LONG)


async def test_a_base_exception_of_a_bus_that_refuses_a_request_ends_the_job():
    bus = PanickingBus()
    bus.panics_at = lambda message: isinstance(message, BusJobRequestMessage)
    async with JobHarness(bus) as harness:
        requester = Requester()
        await harness.start(requester, Raising())
        with pytest.raises(JobError, match="cannot encode"):
            await requester.ask("raising", "plain", timeout=LONG)
        assert not requester.job_groups


async def test_a_handler_whose_coroutine_is_closed_raises_nothing(bus: WorkerBus):
    """At the end of a program coroutines are closed without a loop, so no response can be sent."""
    harness = await BusHarness(bus).__aenter__()
    requester, responder = Requester(), Responder()
    await harness.start(requester, responder)
    job_id = await requester.request_job("responder", name="wait")
    await responder.started.get()
    (task,) = [t for t in asyncio.all_tasks() if "job_wait" in t.get_name()]
    coroutine = task.get_coro()
    assert coroutine is not None
    # This raises RuntimeError if the coroutine awaits anything more.
    coroutine.close()
    await requester.cancel_job_group(job_id)
    task.cancel()
    await asyncio.wait({task})
    await harness.__aexit__(None, None, None)
