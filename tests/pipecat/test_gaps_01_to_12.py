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
from support.workers import Answerer, Asker, Delegator, cancelled

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
    asker, answerer = Asker(), Answerer()
    await job_harness.start(asker, answerer)
    caller = asyncio.create_task(asker.ask("answerer", "wait"))
    job_id = await answerer.started.get()

    await cancelled(caller)
    await job_harness.settle()

    assert answerer.cancelled == [job_id]
    assert not asker.job_groups
    assert not answerer.active_jobs


async def test_gap_02_cancelling_the_requester_stops_nested_jobs(job_harness: JobHarness):
    asker, leaf = Asker(), Answerer("leaf")
    await job_harness.start(asker, Delegator("a", asks="b"), Delegator("b", asks="leaf"), leaf)
    caller = asyncio.create_task(asker.ask("a", "wait"))
    job_id = await leaf.started.get()

    await cancelled(caller)
    await job_harness.settle()

    assert leaf.cancelled == [job_id]


async def test_gap_03_cancelling_the_requester_while_it_sends_requests_stops_the_asked_workers(
    chaos_harness: JobHarness, chaos_bus: ChaosBus
):
    asker, first, second = Asker(), Answerer("first"), Answerer("second")
    await chaos_harness.start(asker, first, second)
    blocked = chaos_bus.block_publish(
        lambda m: isinstance(m, BusJobRequestMessage) and m.target == "second"
    )

    async def call() -> None:
        async with asker.job_group("first", "second", name="wait"):
            pass

    caller = asyncio.create_task(call())
    await blocked.wait()
    job_id = await first.started.get()
    await cancelled(caller)
    blocked.release()
    await chaos_harness.settle()

    assert first.cancelled == [job_id]
    assert second.ran == []
    assert not asker.job_groups


async def test_gap_04_a_cancel_that_overtakes_its_request_wins(
    chaos_harness: JobHarness, chaos_bus: ChaosBus
):
    asker, answerer = Asker(), Answerer()
    await chaos_harness.start(asker, answerer)
    held = chaos_bus.hold(BusJobRequestMessage)

    job_id = await asker.request_job("answerer", name="echo")
    await asker.cancel_job_group(job_id, reason="changed my mind")
    await chaos_harness.settle()
    held.release()
    await chaos_harness.settle()

    assert answerer.ran == []
    answer = await chaos_bus.wait_for(BusJobResponseMessage)
    assert answer.status == JobStatus.CANCELLED


async def test_gap_04_a_cancel_right_after_the_request_leaves_nothing_running(
    job_harness: JobHarness,
):
    asker, answerer = Asker(), Answerer()
    await job_harness.start(asker, answerer)

    job_id = await asker.request_job("answerer", name="wait")
    await asker.cancel_job_group(job_id)
    await job_harness.settle()

    assert answerer.cancelled == answerer.ran
    assert not answerer.active_jobs


class Stubborn(Answerer):
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
    asker, worker = Asker(), Stubborn()
    await job_harness.start(asker, worker)
    resisting = asyncio.create_task(asker.ask("stubborn", "stubborn"))
    waiting = asyncio.create_task(asker.ask("stubborn", "wait"))
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
    asker = Asker()
    await job_harness.start(asker, Answerer())

    with pytest.raises(JobError) as caught:
        await asker.ask("answerer", "raise")

    outcome = caught.value.outcomes["answerer"]
    assert outcome.status is OutcomeStatus.ERROR
    assert outcome.error is not None
    assert (outcome.error.type, outcome.error.message) == ("ValueError", "no such topic")
    assert "raise_error" in (outcome.error.traceback or "")
    for part in ("answerer", "'raise'", "ValueError: no such topic"):
        assert part in str(caught.value)


async def test_gap_07_an_unknown_job_name_gets_a_response_at_once(job_harness: JobHarness):
    asker = Asker()
    await job_harness.start(asker, Answerer())

    with pytest.raises(NoJobHandlerError, match=r"no handler for job 'fly'.*'echo'"):
        await asker.ask("answerer", "fly")


def test_gap_08_a_handler_without_a_response_ends_at_the_deadline_and_the_error_names_it(
    new_local_bus: Callable[[], WorkerBus],
):
    async def main() -> None:
        async with JobHarness(new_local_bus()) as harness:
            asker, answerer = Asker(), Answerer()
            await harness.start(asker, answerer)
            asked_at = asyncio.get_running_loop().time()
            with pytest.raises(JobTimeoutError, match=r"'silent'.*'answerer' within 30 s"):
                await asker.ask("answerer", "silent", timeout=30)
            assert asyncio.get_running_loop().time() - asked_at == pytest.approx(30)
            await harness.settle()
            assert not answerer.active_jobs

    run_virtual(main())


async def test_gap_08_a_worker_that_stops_responds_to_a_job_whose_handler_did_not(
    job_harness: JobHarness,
):
    asker, answerer = Asker(), Answerer()
    await job_harness.start(asker, answerer)
    caller = asyncio.create_task(asker.ask("answerer", "silent"))
    await answerer.started.get()

    await job_harness.end(answerer)

    with pytest.raises(JobCancelledError, match="worker 'answerer' stopped"):
        await caller


async def test_gap_09_an_inactive_worker_takes_jobs(job_harness: JobHarness):
    asker, answerer = Asker(), Answerer(active=False)
    await job_harness.start(asker, answerer)

    response = await asker.ask("answerer", "echo", payload={"n": 1})

    assert not answerer.active
    assert response == {"from": "answerer", "payload": {"n": 1}}


async def test_gap_10_an_inactive_requester_gets_its_response(job_harness: JobHarness):
    asker = Asker(active=False)
    await job_harness.start(asker, Answerer())

    assert (await asker.ask("answerer", "echo"))["from"] == "answerer"
    assert not asker.active


@pytest.mark.parametrize("worker_class", [Answerer, PlainWorker])
async def test_gap_11_a_worker_that_has_stopped_is_lost_at_once(
    job_harness: JobHarness, worker_class: type[PlainWorker]
):
    asker, worker = Asker(), worker_class("gone")
    await job_harness.start(asker, worker)
    await job_harness.end(worker)

    with pytest.raises(WorkerLostError, match="'gone'") as caught:
        await asker.ask("gone", "echo")

    assert caught.value.outcomes["gone"].status is OutcomeStatus.LOST


async def test_gap_12_a_worker_that_stops_during_a_job_is_not_a_success(job_harness: JobHarness):
    asker, answerer = Asker(), Answerer()
    await job_harness.start(asker, answerer)

    with pytest.raises(JobCancelledError, match="worker 'answerer' stopped") as caught:
        async with asker.job("answerer", name="wait"):
            await answerer.started.get()
            await job_harness.end(answerer)

    assert caught.value.outcomes["answerer"].status is OutcomeStatus.CANCELLED


async def test_gap_12_a_cancel_without_a_reason_is_not_a_success(job_harness: JobHarness):
    asker, answerer = Asker(), Answerer()
    await job_harness.start(asker, answerer)

    with pytest.raises(JobCancelledError, match="cancelled"):
        async with asker.job("answerer", name="wait") as j:
            await asker.cancel_job_group(j.job_id)

    assert j.outcome is not None
    assert j.outcome.status is OutcomeStatus.CANCELLED
