"""Plain Pipecat workers and ours on one bus: jobs that are cancelled, stuck or left behind."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pipecat.bus.messages import (
    BusJobCancelMessage,
    BusJobRequestMessage,
    BusJobResponseMessage,
    BusJobUpdateMessage,
)
from pipecat.pipeline.job_context import JobError as PipecatJobError
from pipecat.pipeline.job_context import JobGroupParams, JobParams
from pipecat.pipeline.job_context import JobStatus as PipecatJobStatus
from pipecat.registry.types import WorkerReadyData
from support import peers
from support.peers import PAIRS, OurPeer, PlainPeer, cancel

from pipecat_jobs import JobCancelledError, JobTimeoutError, OutcomeStatus, WorkerLostError
from pipecat_jobs.testing import ChaosBus, JobHarness

pytestmark = pytest.mark.every_bus("slow")

harness = peers.harness


@pytest.fixture
async def blocking_bus() -> ChaosBus:
    return ChaosBus()


@pytest.fixture
async def blocking_harness(blocking_bus: ChaosBus) -> AsyncIterator[JobHarness]:
    async with JobHarness(blocking_bus, check_watches=False) as harness:
        yield harness


# -- cancelling ----------------------------------------------------------------------------------


async def test_cancelling_our_requester_stops_a_plain_handler(harness: JobHarness):
    requester, responder = OurPeer("requester"), PlainPeer("responder")
    await harness.start(requester, responder)
    call_task = asyncio.create_task(requester.ask("responder", "wait"))
    job_id = await responder.started.get()

    await cancel(call_task)

    assert await responder.stopped.get() == job_id
    await harness.settle()
    assert not responder.active_jobs


async def test_a_plain_requester_that_cancels_its_group_stops_our_handler(harness: JobHarness):
    requester, responder = PlainPeer("requester"), OurPeer("responder")
    await harness.start(requester, responder)
    call_task = asyncio.create_task(requester.ask("responder", "wait"))
    job_id = await responder.started.get()

    await requester.cancel_job_group(job_id, reason="changed my mind")

    assert await responder.stopped.get() == job_id
    with pytest.raises(PipecatJobError, match="changed my mind"):
        await call_task


async def test_a_plain_requester_whose_body_is_cancelled_stops_our_handler(harness: JobHarness):
    requester, responder = PlainPeer("requester"), OurPeer("responder")
    await harness.start(requester, responder)
    call_task = asyncio.create_task(requester.events("responder", "wait"))
    job_id = await responder.started.get()

    # Pipecat's own requester leaves a job behind if it is cancelled while it sends the request.
    await harness.settle()
    await cancel(call_task)

    assert await responder.stopped.get() == job_id


async def test_a_plain_requesters_timeout_stops_our_handler(harness: JobHarness):
    requester, responder = PlainPeer("requester"), OurPeer("responder")
    await harness.start(requester, responder)

    with pytest.raises(PipecatJobError, match="timeout"):
        await requester.ask("responder", "wait", timeout=0.3)

    assert await responder.stopped.get() == await responder.started.get()


async def test_our_timeout_stops_a_plain_handler(harness: JobHarness):
    requester, responder = OurPeer("requester"), PlainPeer("responder")
    await harness.start(requester, responder)

    with pytest.raises(JobTimeoutError, match="'responder'"):
        await requester.ask("responder", "wait", timeout=0.3)

    assert await responder.stopped.get() == await responder.started.get()


async def test_a_plain_requesters_cancel_that_overtakes_its_request_wins(
    blocking_harness: JobHarness, blocking_bus: ChaosBus
):
    requester, responder = PlainPeer("requester"), OurPeer("responder")
    await blocking_harness.start(requester, responder)
    held = blocking_bus.hold(BusJobRequestMessage)

    job_id = await requester.request_job("responder", params=JobParams(name="wait"))
    await requester.cancel_job_group(job_id)
    await blocking_harness.settle()
    held.release()
    response = await blocking_bus.wait_for(BusJobResponseMessage)

    assert response.status == PipecatJobStatus.CANCELLED
    assert responder.started.empty()


# -- a bus that makes publishers wait ------------------------------------------------------------


async def test_messages_of_a_plain_worker_while_others_are_still_being_asked_are_not_missed(
    blocking_harness: JobHarness, blocking_bus: ChaosBus
):
    requester, quick, slow = OurPeer("requester"), PlainPeer("quick"), PlainPeer("slow")
    await blocking_harness.start(requester, quick, slow)
    blocked = blocking_bus.block_publish(
        lambda m: isinstance(m, BusJobRequestMessage) and m.target == "slow"
    )

    async def call() -> list[tuple[str, Any]]:
        params = JobGroupParams(name="update")
        async with requester.job_group("quick", "slow", params=params) as jg:
            return [
                (event.worker_name, event.data) async for event in jg if event.type != "response"
            ]

    call_task = asyncio.create_task(call())
    await blocking_bus.wait_for(
        lambda m: isinstance(m, BusJobResponseMessage) and m.source == "quick"
    )
    await blocking_harness.settle()
    blocked.release()

    assert await call_task == [
        ("quick", {"step": 1}),
        ("quick", {"step": 2}),
        ("slow", {"step": 1}),
        ("slow", {"step": 2}),
    ]


async def test_cancelling_our_requester_while_it_sends_requests_stops_asked_plain_workers(
    blocking_harness: JobHarness, blocking_bus: ChaosBus
):
    requester, first, second = OurPeer("requester"), PlainPeer("first"), PlainPeer("second")
    await blocking_harness.start(requester, first, second)
    blocking_bus.block_publish(
        lambda m: isinstance(m, BusJobRequestMessage) and m.target == "second"
    )
    call_task = asyncio.create_task(requester.ask_group("first", "second", name="wait"))
    job_id = await first.started.get()

    await cancel(call_task)
    await blocking_harness.settle()

    assert first.cancelled == [job_id]
    assert second.started.empty()
    assert not requester.job_groups


@pytest.mark.parametrize(("asks", "responds"), PAIRS)
async def test_a_cancel_reaches_a_worker_whose_update_is_stuck_in_the_bus(
    blocking_harness: JobHarness, blocking_bus: ChaosBus, asks: type, responds: type
):
    requester, responder = asks("requester"), responds("responder")
    await blocking_harness.start(requester, responder)
    stuck = blocking_bus.block_publish(BusJobUpdateMessage)
    job_id = await requester.request_job("responder", params=JobParams(name="update"))
    await stuck.wait()

    await requester.cancel_job_group(job_id, reason="enough")

    response = await blocking_bus.wait_for(BusJobResponseMessage)
    assert response.status == PipecatJobStatus.CANCELLED
    assert stuck.messages == []


async def test_the_deadline_holds_while_a_plain_workers_response_is_stuck_in_the_bus(
    blocking_harness: JobHarness, blocking_bus: ChaosBus
):
    requester, responder = OurPeer("requester"), PlainPeer("responder")
    await blocking_harness.start(requester, responder)
    stuck = blocking_bus.block_publish(BusJobResponseMessage)

    with pytest.raises(JobTimeoutError):
        await requester.ask("responder", "echo", timeout=0.05)

    assert await blocking_bus.wait_for(BusJobCancelMessage)
    stuck.release()
    await blocking_harness.settle()
    assert not requester.job_groups


# -- workers that end ----------------------------------------------------------------------------


async def test_a_plain_worker_that_ends_with_a_job_open_cancels_it(harness: JobHarness):
    requester, responder = OurPeer("requester"), PlainPeer("responder")
    await harness.start(requester, responder)
    call_task = asyncio.create_task(requester.ask("responder", "silent"))
    await responder.started.get()

    await harness.end(responder)

    with pytest.raises(JobCancelledError) as cancelled:
        await call_task
    assert cancelled.value.outcomes["responder"].status is OutcomeStatus.CANCELLED


async def test_our_worker_that_ends_with_a_job_open_responds_to_a_plain_requester(
    harness: JobHarness,
):
    requester, responder = PlainPeer("requester"), OurPeer("responder")
    responses: asyncio.Queue[BusJobResponseMessage] = asyncio.Queue()

    async def keep(_: Any, message: BusJobResponseMessage) -> None:
        responses.put_nowait(message)

    requester.add_event_handler("on_job_response", keep)
    await harness.start(requester, responder)
    job_id = await requester.request_job("responder", params=JobParams(name="wait"))
    await responder.started.get()

    await harness.end(responder)

    response = await responses.get()
    assert (response.job_id, response.status) == (job_id, PipecatJobStatus.CANCELLED)
    assert "stopped" in response.response["reason"]
    assert responder.cancelled == [job_id]


async def test_our_requester_that_ends_stops_a_plain_handler(harness: JobHarness):
    requester, responder = OurPeer("requester"), PlainPeer("responder")
    await harness.start(requester, responder)
    call_task = asyncio.create_task(requester.ask("responder", "wait"))
    job_id = await responder.started.get()

    await harness.end(requester)

    with pytest.raises(JobCancelledError):
        await call_task
    assert await responder.stopped.get() == job_id


async def test_a_plain_worker_that_has_ended_is_lost_at_once(harness: JobHarness):
    requester, responder = OurPeer("requester"), PlainPeer("responder")
    await harness.start(requester, responder)
    await harness.end(responder)

    with pytest.raises(WorkerLostError, match="'responder'"):
        await requester.ask("responder", "echo")


class Silent(PlainPeer):
    """Ends without a response to the jobs that it holds, as a worker that crashed does."""

    async def stop(self) -> None:
        self.active_jobs.clear()
        await super().stop()


async def test_a_plain_worker_that_finished_without_a_response_is_lost(harness: JobHarness):
    requester, responder = OurPeer("requester"), Silent("responder")
    await harness.start(requester, responder)
    call_task = asyncio.create_task(requester.ask("responder", "silent"))
    await responder.started.get()

    await harness.end(responder)

    with pytest.raises(WorkerLostError, match="'responder'") as lost:
        await call_task
    assert lost.value.outcomes["responder"].status is OutcomeStatus.LOST


async def test_a_worker_of_ours_whose_last_response_was_never_sent_is_lost(
    blocking_harness: JobHarness, blocking_bus: ChaosBus
):
    class Hasty(OurPeer):
        job_cancel_grace = 0.02

    requester, responder = OurPeer("requester"), Hasty("responder")
    await blocking_harness.start(requester, responder)
    call_task = asyncio.create_task(requester.ask("responder", "wait", timeout=1))
    await responder.started.get()
    blocking_bus.block_publish(BusJobResponseMessage)

    await blocking_harness.end(responder)

    with pytest.raises(WorkerLostError, match="'responder'"):
        await call_task


async def test_a_group_that_loses_one_plain_worker_stops_the_others(harness: JobHarness):
    requester, silent, other = OurPeer("requester"), Silent("silent"), PlainPeer("other")
    await harness.start(requester, silent, other)

    async def call() -> None:
        await requester.ask_group("silent", "other", name="wait")

    silent.release.set()
    silent.send_job_response = _say_nothing
    call_task = asyncio.create_task(call())
    await silent.started.get()
    job_id = await other.started.get()
    await harness.end(silent)

    with pytest.raises(WorkerLostError):
        await call_task
    assert await other.stopped.get() == job_id


async def _say_nothing(*_: Any, **__: Any) -> None:
    pass


async def test_a_worker_is_lost_when_worker_lost_reports_it(harness: JobHarness):
    requester = OurPeer("requester")
    await harness.start(requester)
    # The worker is in another process: this process cannot notice its end.
    await harness.registry.register(WorkerReadyData(worker_name="far", runner="elsewhere"))
    call_task = asyncio.create_task(requester.ask("far", "echo"))
    await requester.group_id

    await requester.worker_lost("far", reason="its host is being rebooted")

    with pytest.raises(WorkerLostError, match="its host is being rebooted"):
        await call_task


async def test_worker_lost_does_not_end_jobs_of_other_workers(harness: JobHarness):
    requester, responder = OurPeer("requester"), PlainPeer("responder")
    await harness.start(requester, responder)
    call_task = asyncio.create_task(requester.ask("responder", "wait"))
    await responder.started.get()

    await requester.worker_lost("another", reason="gone")
    responder.release.set()

    assert await call_task == {"from": "responder"}
