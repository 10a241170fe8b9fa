"""The gaps of Pipecat's own jobs, row by row of the list that this project started from.

The number in a test's name is the row's. Rows 25 to 29 and 31 to 32 are about LLM turns, cost and
network buses.
"""

import asyncio
from collections.abc import Callable

import pytest
from pipecat.bus import WorkerBus
from pipecat.bus.messages import (
    BusJobCancelMessage,
    BusJobRequestMessage,
    BusJobResponseMessage,
)
from pipecat.pipeline.job_context import JobStatus
from pipecat.workers.base_worker import BaseWorker as PlainWorker
from support.workers import Delegator, Requester, Responder, cancelled

from pipecat_jobs import (
    JobCancelledError,
    JobError,
    JobTimeoutError,
    NoJobHandlerError,
    OutcomeStatus,
    WorkerLostError,
    job,
)
from pipecat_jobs.testing import ChaosBus, JobHarness, run_virtual

pytestmark = pytest.mark.every_bus


async def test_gap_01_cancelling_the_requester_at_exit_stops_the_handler(job_harness: JobHarness):
    requester, responder = Requester(), Responder()
    await job_harness.start(requester, responder)
    call_task = asyncio.create_task(requester.ask("responder", "wait"))
    job_id = await responder.started.get()

    await cancelled(call_task)
    await job_harness.settle()

    assert responder.cancelled == [job_id]
    assert not requester.job_groups
    assert not responder.active_jobs


async def test_gap_02_cancelling_the_requester_stops_nested_jobs(job_harness: JobHarness):
    requester, leaf = Requester(), Responder("leaf")
    await job_harness.start(requester, Delegator("a", asks="b"), Delegator("b", asks="leaf"), leaf)
    call_task = asyncio.create_task(requester.ask("a", "wait"))
    job_id = await leaf.started.get()

    await cancelled(call_task)
    await job_harness.settle()

    assert leaf.cancelled == [job_id]


async def test_gap_03_cancelling_the_requester_while_it_sends_requests_stops_the_asked_workers(
    chaos_harness: JobHarness, chaos_bus: ChaosBus
):
    requester, first, second = Requester(), Responder("first"), Responder("second")
    await chaos_harness.start(requester, first, second)
    blocked = chaos_bus.block_publish(
        lambda m: isinstance(m, BusJobRequestMessage) and m.target == "second"
    )

    async def call() -> None:
        async with requester.job_group("first", "second", name="wait"):
            pass

    call_task = asyncio.create_task(call())
    await blocked.wait()
    job_id = await first.started.get()
    await cancelled(call_task)
    blocked.release()
    await chaos_harness.settle()

    assert first.cancelled == [job_id]
    assert second.ran == []
    assert not requester.job_groups


async def test_gap_04_a_cancel_that_overtakes_its_request_wins(
    chaos_harness: JobHarness, chaos_bus: ChaosBus
):
    requester, responder = Requester(), Responder()
    await chaos_harness.start(requester, responder)
    held = chaos_bus.hold(BusJobRequestMessage)

    job_id = await requester.request_job("responder", name="echo")
    await requester.cancel_job_group(job_id, reason="changed my mind")
    await chaos_harness.settle()
    held.release()
    await chaos_harness.settle()

    assert responder.ran == []
    response = await chaos_bus.wait_for(BusJobResponseMessage)
    assert response.status == JobStatus.CANCELLED


async def test_gap_04_a_cancel_right_after_the_request_leaves_nothing_running(
    job_harness: JobHarness,
):
    requester, responder = Requester(), Responder()
    await job_harness.start(requester, responder)

    job_id = await requester.request_job("responder", name="wait")
    await requester.cancel_job_group(job_id)
    await job_harness.settle()

    assert responder.cancelled == responder.ran
    assert not responder.active_jobs


class Stubborn(Responder):
    """A worker whose handler ignores its cancellation until the test releases it."""

    job_cancel_grace = 0.01

    def __init__(self) -> None:
        super().__init__("stubborn")
        self.resists = asyncio.Event()
        self.given_up = asyncio.Event()

    async def on_job_cancelled(self, message: BusJobCancelMessage) -> None:
        if not self.cancelled or message.job_id != self.cancelled[0]:
            self.given_up.set()

    @job(name="stubborn")
    async def stubborn(self, message: BusJobRequestMessage) -> dict:
        self.started.put_nowait(message.job_id)
        while not self.release.is_set():
            try:
                await self.release.wait()
            except asyncio.CancelledError:
                self.resists.set()
        return {"too": "late"}


async def test_gap_05_a_handler_that_resists_cancellation_does_not_delay_others(
    job_harness: JobHarness, job_log
):
    requester, worker = Requester(), Stubborn()
    await job_harness.start(requester, worker)
    resisting = asyncio.create_task(requester.ask("stubborn", "stubborn"))
    waiting = asyncio.create_task(requester.ask("stubborn", "wait"))
    resisting_id, waiting_id = await worker.started.get(), await worker.started.get()

    await cancelled(resisting)
    await worker.resists.wait()
    await cancelled(waiting)
    await job_harness.settle()
    assert worker.cancelled == [waiting_id]

    await worker.given_up.wait()
    await job_harness.settle()
    assert any("resists cancellation" in record.message for record in job_log)
    assert resisting_id not in worker.active_jobs
    worker.release.set()


async def test_gap_06_a_handler_that_raises_ends_its_job_as_error_with_type_and_message(
    job_harness: JobHarness,
):
    requester = Requester()
    await job_harness.start(requester, Responder())

    with pytest.raises(JobError) as caught:
        await requester.ask("responder", "raise")

    outcome = caught.value.outcomes["responder"]
    assert outcome.status is OutcomeStatus.ERROR
    assert outcome.error is not None
    assert (outcome.error.type, outcome.error.message) == ("ValueError", "no such topic")
    assert "raise_error" in (outcome.error.traceback or "")
    for part in ("responder", "'raise'", "ValueError: no such topic"):
        assert part in str(caught.value)


async def test_gap_07_an_unknown_job_name_gets_a_response_at_once(job_harness: JobHarness):
    requester = Requester()
    await job_harness.start(requester, Responder())

    with pytest.raises(NoJobHandlerError, match=r"no handler for job 'fly'.*'echo'"):
        await requester.ask("responder", "fly")


def test_gap_08_a_handler_without_a_response_ends_at_the_deadline_and_the_error_names_it(
    new_local_bus: Callable[[], WorkerBus],
):
    async def main() -> None:
        async with JobHarness(new_local_bus()) as harness:
            requester, responder = Requester(), Responder()
            await harness.start(requester, responder)
            asked_at = asyncio.get_running_loop().time()
            with pytest.raises(JobTimeoutError, match=r"'silent'.*'responder' within 30 s"):
                await requester.ask("responder", "silent", timeout=30)
            assert asyncio.get_running_loop().time() - asked_at == pytest.approx(30)
            await harness.settle()
            assert not responder.active_jobs

    run_virtual(main())


async def test_gap_08_a_worker_that_stops_responds_to_a_job_whose_handler_did_not(
    job_harness: JobHarness,
):
    requester, responder = Requester(), Responder()
    await job_harness.start(requester, responder)
    call_task = asyncio.create_task(requester.ask("responder", "silent"))
    await responder.started.get()

    await job_harness.end(responder)

    with pytest.raises(JobCancelledError, match="worker 'responder' stopped"):
        await call_task


async def test_gap_09_an_inactive_worker_takes_jobs(job_harness: JobHarness):
    requester, responder = Requester(), Responder(active=False)
    await job_harness.start(requester, responder)

    response = await requester.ask("responder", "echo", payload={"n": 1})

    assert not responder.active
    assert response == {"from": "responder", "payload": {"n": 1}}


async def test_gap_10_an_inactive_requester_gets_its_response(job_harness: JobHarness):
    requester = Requester(active=False)
    await job_harness.start(requester, Responder())

    assert (await requester.ask("responder", "echo"))["from"] == "responder"
    assert not requester.active


@pytest.mark.parametrize("worker_class", [Responder, PlainWorker])
async def test_gap_11_a_worker_that_has_stopped_is_lost_at_once(
    job_harness: JobHarness, worker_class: type[PlainWorker]
):
    requester, worker = Requester(), worker_class("gone")
    await job_harness.start(requester, worker)
    await job_harness.end(worker)

    with pytest.raises(WorkerLostError, match="'gone'") as caught:
        await requester.ask("gone", "echo")

    assert caught.value.outcomes["gone"].status is OutcomeStatus.LOST


async def test_gap_12_a_worker_that_stops_during_a_job_is_not_a_success(job_harness: JobHarness):
    requester, responder = Requester(), Responder()
    await job_harness.start(requester, responder)

    with pytest.raises(JobCancelledError, match="worker 'responder' stopped") as caught:
        async with requester.job("responder", name="wait"):
            await responder.started.get()
            await job_harness.end(responder)

    assert caught.value.outcomes["responder"].status is OutcomeStatus.CANCELLED


async def test_gap_12_a_cancel_without_a_reason_is_not_a_success(job_harness: JobHarness):
    requester, responder = Requester(), Responder()
    await job_harness.start(requester, responder)

    with pytest.raises(JobCancelledError, match="cancelled"):
        async with requester.job("responder", name="wait") as j:
            await requester.cancel_job_group(j.job_id)

    assert j.outcome is not None
    assert j.outcome.status is OutcomeStatus.CANCELLED
