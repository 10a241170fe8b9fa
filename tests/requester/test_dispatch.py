"""Sending the requests of a job, and the events that may happen in between."""

import asyncio

import pytest
from pipecat.bus.messages import BusJobRequestMessage
from support.workers import Requester, Responder, cancelled

from pipecat_jobs import BaseWorker, JobCancelledError, JobGroupError, WorkerLostError
from pipecat_jobs.testing import ChaosBus, JobHarness

pytestmark = pytest.mark.every_bus


async def test_a_bus_that_refuses_a_request_ends_the_job_as_error(
    chaos_harness: JobHarness, chaos_bus: ChaosBus, monkeypatch
):
    requester, first = Requester(), Responder("first")
    await chaos_harness.start(requester, first, Responder("second"))
    send = chaos_bus.send

    async def refuse_second(message) -> None:
        if isinstance(message, BusJobRequestMessage) and message.target == "second":
            raise ConnectionError("bus is down")
        await send(message)

    monkeypatch.setattr(chaos_bus, "send", refuse_second)
    with pytest.raises(JobGroupError, match="bus is down") as caught:
        async with requester.job_group("first", "second", name="wait"):
            pass
    await chaos_harness.settle()
    assert isinstance(caught.value.__cause__, ConnectionError)
    assert first.ran == first.cancelled


async def test_deadline_and_cancel_reach_a_requester_whose_request_the_bus_does_not_take(
    chaos_harness: JobHarness, chaos_bus: ChaosBus
):
    requester, responder = Requester(), Responder()
    await chaos_harness.start(requester, responder)
    blocked = chaos_bus.block_publish(BusJobRequestMessage)
    with pytest.raises(TimeoutError):
        await requester.ask("responder", "wait", timeout=0.01)
    call_task = asyncio.create_task(requester.ask("responder", "wait", job_id="j"))
    await chaos_harness.settle()
    await requester.cancel_job_group("j", reason="enough")
    with pytest.raises(JobCancelledError, match="enough"):
        await call_task
    blocked.release()
    await chaos_harness.settle()
    assert responder.ran == responder.cancelled


async def test_a_response_that_arrives_before_its_request_was_published_counts(
    chaos_harness: JobHarness, chaos_bus: ChaosBus, monkeypatch
):
    requester = Requester()
    await chaos_harness.start(requester, Responder())
    send, taken = chaos_bus.send, asyncio.Event()

    async def deliver_and_linger(message) -> None:
        await send(message)
        if isinstance(message, BusJobRequestMessage):
            await taken.wait()

    monkeypatch.setattr(chaos_bus, "send", deliver_and_linger)
    assert (await requester.ask("responder", "echo", timeout=0.02))["from"] == "responder"
    taken.set()


async def test_cancelling_the_requester_wins_over_a_simultaneous_end(
    chaos_harness: JobHarness, chaos_bus: ChaosBus
):
    requester = Requester()
    await chaos_harness.start(requester, Responder())
    blocked = chaos_bus.block_publish(BusJobRequestMessage)
    call_task = asyncio.create_task(requester.ask("responder", "wait", job_id="j"))
    await blocked.wait()
    calling_off = asyncio.create_task(requester.cancel_job_group("j"))
    await asyncio.sleep(0)
    await cancelled(call_task)
    await calling_off
    blocked.release()


async def test_a_requester_without_hooks_notices_at_once_that_a_worker_has_ended(
    job_harness: JobHarness,
):
    requester, responder = BaseWorker("requester"), Responder()
    await job_harness.start(requester, responder)
    await job_harness.end(responder)
    with pytest.raises(WorkerLostError, match="has ended"):
        async with requester.job("responder", name="echo"):
            pass


async def test_asking_after_the_worker_has_stopped_is_an_error_that_says_so(
    job_harness: JobHarness,
):
    requester = Requester()
    await job_harness.start(requester, Responder())
    await job_harness.end(requester)
    with pytest.raises(JobCancelledError, match="worker 'requester' has stopped"):
        await requester.ask("responder", "echo")
