"""Hooks and events: each fires once per occurrence, in order, and changes no outcome."""

import asyncio
from typing import ClassVar

import pytest
from pipecat.bus.messages import BusJobRequestMessage
from support.workers import Requester, Responder

from pipecat_jobs import BaseWorker, JobError, job
from pipecat_jobs._protocol.hooks import JOB_EVENTS
from pipecat_jobs.testing import JobHarness

pytestmark = pytest.mark.every_bus


def recording(base: type[BaseWorker]) -> type[BaseWorker]:
    """A worker class that overrides every hook and keeps the order of the calls."""

    def override(event: str):
        async def hook(self, message) -> None:
            self.calls.append(event)
            await getattr(super(cls, self), event)(message)

        return hook

    cls = type("Recording", (base,), {})
    for event in JOB_EVENTS:
        if event != "on_job_request":
            setattr(cls, event, override(event))
    return cls


class Everything(Responder):
    @job(name="everything")
    async def everything(self, message: BusJobRequestMessage) -> None:
        await self.send_job_update(message.job_id, {"n": 1})
        await self.send_job_stream_start(message.job_id)
        await self.send_job_stream_data(message.job_id, {"n": 2})
        await self.send_job_stream_end(message.job_id, {"n": 3})


REQUESTER_ORDER = [
    "on_job_update",
    "on_job_stream_start",
    "on_job_stream_data",
    "on_job_stream_end",
    "on_job_completed",
]


async def test_overrides_fire_once_each_in_order(job_harness: JobHarness):
    requester = recording(Requester)("requester")
    requester.calls = []
    await job_harness.start(requester, Everything())
    assert await requester.ask("responder", "everything") == {"n": 3}
    assert requester.calls == REQUESTER_ORDER
    await job_harness.settle()
    assert requester.fired() == REQUESTER_ORDER


async def test_executor_hooks_fire_once_each(job_harness: JobHarness):
    requester, responder = Requester(), recording(Responder)("responder")
    responder.calls = []
    events: list[str] = []
    for event in ("on_job_request", "on_job_update_requested", "on_job_cancelled"):
        responder.add_event_handler(event, lambda worker, m, event=event: events.append(event))
    await job_harness.start(requester, responder)
    job_id = await requester.request_job("responder", name="wait")
    await responder.started.get()
    await requester.request_job_update(job_id, "responder")
    await job_harness.settle()
    await requester.cancel_job_group(job_id)
    await job_harness.settle()
    assert responder.calls == ["on_job_update_requested", "on_job_cancelled"]
    assert events == ["on_job_request", "on_job_update_requested", "on_job_cancelled"]


async def test_error_hook_gets_the_response_and_completed_does_not_fire(job_harness: JobHarness):
    requester = recording(Requester)("requester")
    requester.calls = []
    await job_harness.start(requester, Responder())
    with pytest.raises(JobError):
        await requester.ask("responder", "raise")
    assert requester.calls == ["on_job_response", "on_job_error"]


@pytest.mark.parametrize("event", REQUESTER_ORDER)
@pytest.mark.parametrize("error", [ValueError("broken"), asyncio.CancelledError()])
async def test_override_that_raises_is_logged_and_changes_nothing(
    job_harness: JobHarness, job_log, event: str, error: BaseException
):
    async def broken(self, message) -> None:
        raise error

    requester = type("Broken", (Requester,), {event: broken})("requester")
    await job_harness.start(requester, Everything())
    async with requester.job("responder", name="everything") as j:
        assert len([e async for e in j]) == 4
    assert j.response == {"n": 3}
    (record,) = [r for r in job_log if r.exception is not None]
    assert record.exception is error
    assert f"{event}() of worker 'requester'" in record.message
    assert record.exception.__traceback__ is not None


@pytest.mark.parametrize("event", [e for e in JOB_EVENTS if e != "on_job_error"])
async def test_event_handler_that_raises_is_logged_with_its_traceback(
    job_harness: JobHarness, job_log, event: str
):
    requester, responder = Requester(), Everything()
    for worker in (requester, responder):

        @worker.event_handler(event)
        async def broken(worker: BaseWorker, message: object) -> None:
            raise ValueError("broken")

    await job_harness.start(requester, responder)
    assert await requester.ask("responder", "everything") == {"n": 3}
    assert (await requester.ask("responder", "echo"))["from"] == "responder"
    job_id = await requester.request_job("responder", name="wait")
    await responder.started.get()
    await requester.request_job_update(job_id, "responder")
    # A cancel may overtake the event.
    await job_harness.settle()
    await requester.cancel_job_group(job_id)
    await job_harness.settle()
    errors = [r for r in job_log if isinstance(r.exception, ValueError)]
    assert errors
    assert all("broken" in r.message and event in r.message for r in errors)


async def test_event_handler_can_be_removed(job_harness: JobHarness):
    requester = Requester()
    calls: list[object] = []

    def handler(worker: BaseWorker, message: object) -> None:
        calls.append(message)

    requester.add_event_handler("on_job_response", handler)
    requester.remove_event_handler("on_job_response", handler)
    await job_harness.start(requester, Responder())
    await requester.ask("responder", "echo")
    await job_harness.settle()
    assert calls == []


async def test_hook_that_asks_for_another_job_does_not_block_its_response(job_harness: JobHarness):
    class Chaining(Requester):
        async def on_job_completed(self, result) -> None:
            if result.job_id == "first":
                async with self.job("responder", name="echo", job_id="second") as j:
                    pass
                self.chained = j.response

    requester = Chaining()
    await job_harness.start(requester, Responder())
    await requester.ask("responder", "echo", job_id="first")
    assert requester.chained["from"] == "responder"


async def test_slow_hook_of_one_job_does_not_delay_another(job_harness: JobHarness):
    class Slow(Requester):
        def __init__(self) -> None:
            super().__init__()
            self.gate = asyncio.Event()

        async def on_job_response(self, message) -> None:
            if message.job_id == "slow":
                await self.gate.wait()

    requester = Slow()
    await job_harness.start(requester, Responder())
    slow = asyncio.create_task(requester.ask("responder", "echo", job_id="slow"))
    await job_harness.settle()
    await requester.ask("responder", "echo", job_id="quick")
    assert not slow.done()
    requester.gate.set()
    await slow


async def test_hooks_get_every_arrived_message_before_the_job_ends(job_harness: JobHarness):
    class Slow(Requester):
        received: ClassVar[list[object]] = []
        gate = asyncio.Semaphore(0)

        async def on_job_update(self, message) -> None:
            await self.gate.acquire()
            self.received.append(message.update)

    requester, responder = Slow(), Responder()
    await job_harness.start(requester, responder)
    group = await requester.create_job_group_and_request_job(["responder"], name="wait")
    await responder.started.get()
    for number in range(3):
        await responder.send_job_update(group.job_id, {"n": number})
    responder.release.set()
    await job_harness.settle()
    requester.gate.release()
    await job_harness.settle()
    assert (len(requester.received), group.is_done) == (1, False)
    requester.gate.release()
    requester.gate.release()
    await group.wait()
    assert requester.received == [{"n": 0}, {"n": 1}, {"n": 2}]
