"""Cancel anywhere, cancel everywhere: a requester at every point, and the jobs that it started."""

import asyncio
import contextlib
from collections.abc import Callable

import pytest
from pipecat.bus import WorkerBus
from pipecat.bus.messages import (
    BusJobCancelMessage,
    BusJobRequestMessage,
    BusJobResponseMessage,
    BusMessage,
)
from pipecat.pipeline.job_context import JobStatus
from pipecat.workers.base_worker import BaseWorker as PlainWorker
from support.workers import Delegator, Requester, Responder, cancelled, until

from pipecat_jobs import JobCancelledError, JobGroupError, OutcomeStatus, WorkerLostError, job
from pipecat_jobs.testing import ChaosBus, JobHarness, run_virtual

pytestmark = pytest.mark.every_bus


async def test_a_cancel_while_waiting_for_readiness_sends_nothing_and_leaves_nothing(
    chaos_harness: JobHarness, chaos_bus: ChaosBus
):
    requester = Requester()
    await chaos_harness.start(requester)
    call_task = asyncio.create_task(requester.ask("late", "wait", job_id="j"))
    await chaos_harness.settle()
    assert "j" in requester.job_groups

    await cancelled(call_task)
    assert chaos_harness.left_behind() == []
    late = Responder("late")
    await chaos_harness.start(late)
    await chaos_harness.settle()
    assert late.ran == []


async def test_a_cancel_while_sending_also_cancels_the_request_that_may_have_left(
    chaos_harness: JobHarness, chaos_bus: ChaosBus
):
    requester, responder = Requester(), Responder()
    await chaos_harness.start(requester, responder)
    blocked = chaos_bus.block_publish(BusJobRequestMessage)
    call_task = asyncio.create_task(requester.ask("responder", "wait"))
    await blocked.wait()
    await cancelled(call_task)
    cancel = await chaos_bus.wait_for(BusJobCancelMessage)
    assert cancel.target == "responder"


async def test_a_cancel_while_a_group_is_dispatched_by_hand_leaves_nothing(
    chaos_harness: JobHarness, chaos_bus: ChaosBus
):
    requester, responder = Requester(), Responder()
    await chaos_harness.start(requester, responder)
    for names in (["responder"], ["responder", "late"]):
        blocked = chaos_bus.block_publish(BusJobRequestMessage)
        call_task = asyncio.create_task(
            requester.create_job_group_and_request_job(names, name="wait")
        )
        await chaos_harness.settle()
        await cancelled(call_task)
        blocked.release()
        await chaos_harness.settle()
        assert chaos_harness.left_behind() == []


@pytest.mark.parametrize("error", [KeyError("body"), asyncio.CancelledError()])
async def test_an_exception_in_the_body_stops_every_worker(job_harness: JobHarness, error):
    requester, first, second = Requester(), Responder("first"), Responder("second")
    await job_harness.start(requester, first, second)

    async def call() -> None:
        async with requester.job_group("first", "second", name="wait"):
            await first.started.get()
            await second.started.get()
            raise error

    with pytest.raises(type(error)):
        await call()
    await job_harness.settle()
    assert len(first.cancelled) == len(second.cancelled) == 1
    assert {m.reason for m in first.hook_calls + second.hook_calls} == {"context exited with error"}


async def test_a_cancel_while_iterating_events_stops_the_handler(job_harness: JobHarness):
    requester, responder = Requester(), Responder()
    await job_harness.start(requester, responder)

    async def call() -> None:
        async with requester.job("responder", name="wait") as j:
            async for _ in j:
                pass

    call_task = asyncio.create_task(call())
    job_id = await responder.started.get()
    await cancelled(call_task)
    await job_harness.settle()
    assert responder.cancelled == [job_id]


async def test_a_timeout_around_the_call_cancels_the_job(job_harness: JobHarness):
    requester, responder = Requester(), Responder()
    await job_harness.start(requester, responder)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await requester.ask("responder", "wait")
    await job_harness.settle()
    assert responder.cancelled == responder.ran


async def test_a_timeout_is_one_also_where_the_bus_raises_a_subclass_of_the_cancel(
    job_harness: JobHarness,
):
    class Cancelled(asyncio.CancelledError):
        """As redis-py raises when the message was sent in the same moment."""

    class Slow(Requester):
        async def send_bus_message(self, message: BusMessage) -> None:
            await super().send_bus_message(message)
            if isinstance(message, BusJobRequestMessage):
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError as error:
                    raise Cancelled from error

    requester, responder = Slow(), Responder()
    await job_harness.start(requester, responder)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await requester.ask("responder", "wait")


async def test_a_task_group_that_fails_cancels_the_jobs_of_its_tasks(job_harness: JobHarness):
    requester, responder = Requester(), Responder()
    await job_harness.start(requester, responder)

    async def fail() -> None:
        await responder.started.get()
        raise KeyError("sibling")

    with pytest.raises(ExceptionGroup):
        async with asyncio.TaskGroup() as group:
            group.create_task(requester.ask("responder", "wait"))
            group.create_task(fail())
    await job_harness.settle()
    assert len(responder.cancelled) == 1


async def test_a_second_cancellation_during_the_clean_up_still_cancels_the_workers(
    chaos_harness: JobHarness, chaos_bus: ChaosBus
):
    requester, responder = Requester(), Responder()
    await chaos_harness.start(requester, responder)
    call_task = asyncio.create_task(requester.ask("responder", "wait"))
    await responder.started.get()
    blocked = chaos_bus.block_publish(BusJobCancelMessage)
    call_task.cancel()
    await blocked.wait()
    await cancelled(call_task)
    blocked.release()
    await chaos_harness.settle()
    assert len(responder.cancelled) == 1


async def test_a_bus_that_does_not_take_the_cancel_delays_the_requester_for_a_bounded_time(
    chaos_harness: JobHarness, chaos_bus: ChaosBus, monkeypatch, job_log
):
    monkeypatch.setattr("pipecat_jobs._requester.cancellation.CANCEL_GRACE", 0.01)
    requester, responder = Requester(), Responder()
    await chaos_harness.start(requester, responder)
    call_task = asyncio.create_task(requester.ask("responder", "wait"))
    await responder.started.get()
    blocked = chaos_bus.block_publish(BusJobCancelMessage)
    await cancelled(call_task)
    assert any("has not taken the cancel" in record.message for record in job_log)
    blocked.release()
    await chaos_harness.settle()


async def test_a_handler_may_clean_up_and_its_hook_runs_after_it(job_harness: JobHarness):
    order: list[str] = []

    class Careful(Responder):
        @job(name="careful")
        async def careful(self, message: BusJobRequestMessage) -> dict:
            self.started.put_nowait(message.job_id)
            try:
                await self.release.wait()
            finally:
                await asyncio.sleep(0)
                order.append("cleaned up")
            return {}

        async def on_job_cancelled(self, message: BusJobCancelMessage) -> None:
            assert message.job_id in self.active_jobs
            order.append(f"hook: {message.reason}")

    requester, worker = Requester(), Careful("careful")
    await job_harness.start(requester, worker)
    with pytest.raises(JobCancelledError, match="manual"):
        async with requester.job("careful", name="careful") as j:
            await worker.started.get()
            await requester.cancel_job_group(j.job_id, reason="manual")
    await job_harness.settle()
    assert order == ["cleaned up", "hook: manual"]


async def test_a_handler_that_swallows_its_cancellation_does_not_respond(job_harness: JobHarness):
    class Swallowing(Responder):
        @job(name="swallow")
        async def swallow(self, message: BusJobRequestMessage) -> dict:
            self.started.put_nowait(message.job_id)
            try:
                await self.release.wait()
            except asyncio.CancelledError:
                return {"as if": "nothing happened"}
            return {}

    requester, worker = Requester(), Swallowing("swallowing")
    await job_harness.start(requester, worker)
    job_id = await requester.request_job("swallowing", name="swallow")
    await worker.started.get()
    await requester.cancel_job_group(job_id)
    await job_harness.settle()
    assert [m.status for event, m in requester.hooks if event == "on_job_response"] == ["cancelled"]


async def test_cancelling_one_branch_of_nested_jobs_does_not_stop_the_other(
    job_harness: JobHarness,
):
    requester, leaf, other = Requester(), Responder("leaf"), Responder("other")
    await job_harness.start(requester, Delegator("a", asks="leaf"), Delegator("b", asks="other"))
    await job_harness.start(leaf, other)
    first = asyncio.create_task(requester.ask("a", "wait"))
    second = asyncio.create_task(requester.ask("b", "wait"))
    await leaf.started.get()
    await other.started.get()
    await cancelled(first)
    await job_harness.settle()
    assert (len(leaf.cancelled), len(other.cancelled)) == (1, 0)
    other.release.set()
    assert await second == {"from": "other"}


async def test_a_timeout_stops_nested_jobs(job_harness: JobHarness):
    requester, leaf = Requester(), Responder("leaf")
    await job_harness.start(requester, Delegator("a", asks="leaf"), leaf)
    with pytest.raises(TimeoutError):
        await requester.ask("a", "wait", timeout=0.02)
    await job_harness.settle()
    assert leaf.cancelled == leaf.ran


async def test_cancelling_an_unknown_or_ended_job_does_nothing(job_harness: JobHarness):
    requester = Requester()
    await job_harness.start(requester, Responder())
    await requester.cancel_job_group("unknown")
    async with requester.job("responder", name="echo") as j:
        pass
    await requester.cancel_job_group(j.job_id)
    assert j.outcome is not None
    assert j.outcome.completed


async def test_a_worker_that_was_considered_lost_is_sent_a_cancel(job_harness: JobHarness):
    """The worker may only be unreachable."""
    requester, responder = Requester(), Responder()
    await job_harness.start(requester, responder)
    call_task = asyncio.create_task(requester.ask("responder", "wait"))
    await responder.started.get()
    await requester.worker_lost("responder", reason="its host does not answer")
    with pytest.raises(WorkerLostError, match="its host does not answer"):
        await call_task
    await job_harness.settle()
    assert len(responder.cancelled) == 1


async def test_a_manual_cancel_during_readiness_ends_the_call(job_harness: JobHarness):
    requester = Requester()
    await job_harness.start(requester)
    call_task = asyncio.create_task(requester.ask("late", job_id="j"))
    await job_harness.settle()
    await requester.cancel_job_group("j", reason="never mind")
    with pytest.raises(JobCancelledError, match="never mind") as caught:
        await call_task
    assert caught.value.outcomes["late"].status is OutcomeStatus.CANCELLED


async def test_a_handler_is_cancelled_even_after_it_caught_cancels_of_its_own(
    job_harness: JobHarness,
):
    """Client libraries whose timeouts are cancels leave such cancels behind."""

    class Busy(Responder):
        @job(name="get over")
        async def get_over(self, message: BusJobRequestMessage) -> dict:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0)
            assert task.cancelling()
            return await self.wait_for_release(message)

    requester, worker = Requester(), Busy()
    await job_harness.start(requester, worker)
    call_task = asyncio.create_task(requester.ask("responder", "get over"))
    job_id = await worker.started.get()
    await cancelled(call_task)
    await job_harness.settle()
    assert worker.cancelled == [job_id]


MANY = 1_500


async def test_any_number_of_cancels_may_overtake_their_requests(
    chaos_harness: JobHarness, chaos_bus: ChaosBus
):
    requester, responder = Requester(), Responder()
    await chaos_harness.start(requester, responder)
    held = chaos_bus.hold(BusJobRequestMessage)
    for _ in range(MANY):
        await requester.cancel_job_group(await requester.request_job("responder", name="wait"))
    await chaos_harness.settle()
    held.release()
    await chaos_bus.wait_for(BusJobResponseMessage, MANY)
    await chaos_harness.settle()
    assert responder.ran == []
    assert len(responder._job_responses.early_cancels) == 0


async def test_the_responses_to_any_number_of_cancels_reach_the_hook(chaos_harness: JobHarness):
    requester, responder = Requester(), Responder()
    await chaos_harness.start(requester, responder)
    jobs = [await requester.request_job("responder", name="wait") for _ in range(MANY)]
    for _ in jobs:
        await responder.started.get()
    await asyncio.gather(*(requester.cancel_job_group(job_id) for job_id in jobs))
    await until(lambda: len(requester.hooks) >= MANY)
    assert {(event, m.status) for event, m in requester.hooks} == {
        ("on_job_response", JobStatus.CANCELLED)
    }
    assert len(requester.hooks) == MANY


def test_cancels_that_belong_to_no_request_are_forgotten(new_local_bus: Callable[[], WorkerBus]):
    async def test() -> None:
        async with JobHarness(new_local_bus()) as harness:
            requester, responder = Requester(), Responder()
            await harness.start(requester, responder)
            for number in range(MANY):
                await requester.send_bus_message(
                    BusJobCancelMessage(source="requester", target="responder", job_id=str(number))
                )
            await harness.settle()
            assert len(responder._job_responses.early_cancels) == MANY
            await asyncio.sleep(3_600)
            await requester.ask("responder", "echo")
            assert len(responder._job_responses.early_cancels) == 0

    run_virtual(test())


class TestShutdown:
    async def test_the_end_of_the_requester_cancels_its_jobs(self, job_harness: JobHarness):
        requester, responder = Requester(), Responder()
        await job_harness.start(requester, responder)
        call_task = asyncio.create_task(requester.ask("responder", "wait"))
        waiting = asyncio.create_task(requester.ask("late", "wait"))
        await responder.started.get()
        await job_harness.end(requester)
        for call in (call_task, waiting):
            with pytest.raises(JobCancelledError, match="worker 'requester' stopped"):
                await call
        await job_harness.settle()
        assert len(responder.cancelled) == 1

    async def test_the_end_of_a_worker_in_the_middle_ends_its_jobs_on_both_sides(
        self, job_harness: JobHarness
    ):
        requester, leaf, middle = Requester(), Responder("leaf"), Delegator("middle", asks="leaf")
        await job_harness.start(requester, middle, leaf)
        call_task = asyncio.create_task(requester.ask("middle", "wait"))
        await leaf.started.get()
        await job_harness.end(middle)
        with pytest.raises(JobCancelledError, match="worker 'middle' stopped"):
            await call_task
        await job_harness.settle()
        assert len(leaf.cancelled) == 1

    @pytest.mark.parametrize("how", ["cancel", "end"])
    async def test_the_end_of_the_runner_ends_every_call(self, job_harness: JobHarness, how: str):
        requester, responder, plain = Requester(), Responder(), PlainWorker("plain")
        await job_harness.start(requester, responder, plain)
        calls = [
            asyncio.create_task(requester.ask("responder", "wait")),
            asyncio.create_task(requester.ask("plain")),
            asyncio.create_task(requester.ask("never there")),
        ]
        await responder.started.get()
        await getattr(job_harness.runner, how)()
        for call in calls:
            with pytest.raises((JobCancelledError, JobGroupError)):
                await call
        await job_harness.settle()
        assert not requester.job_groups
        assert not responder.active_jobs

    async def test_the_end_of_a_worker_waits_for_a_handler_that_cleans_up(
        self, job_harness: JobHarness
    ):
        class Tidy(Responder):
            tidying, tidy, tidied = asyncio.Event(), asyncio.Event(), asyncio.Event()

            @job(name="tidy")
            async def clean_up(self, message: BusJobRequestMessage) -> dict:
                self.started.put_nowait(message.job_id)
                try:
                    await self.release.wait()
                finally:
                    self.tidying.set()
                    await self.tidy.wait()
                    self.tidied.set()
                return {}

        requester, worker = Requester(), Tidy()
        await job_harness.start(requester, worker)
        call_task = asyncio.create_task(requester.ask("responder", "tidy"))
        await worker.started.get()
        await cancelled(call_task)
        await worker.tidying.wait()
        ending = asyncio.create_task(job_harness.end(worker))
        await job_harness.settle()
        worker.tidy.set()
        await ending
        assert worker.tidied.is_set()

    async def test_the_end_of_a_worker_cancels_again_a_handler_that_went_on_after_a_cancel(
        self, job_harness: JobHarness
    ):
        class IgnoresCancel(Responder):
            job_cancel_grace = 1.0
            went_on, stopped = asyncio.Event(), asyncio.Event()

            @job(name="go on")
            async def go_on(self, message: BusJobRequestMessage) -> dict:
                self.started.put_nowait(message.job_id)
                try:
                    await self.release.wait()
                except asyncio.CancelledError:
                    self.went_on.set()
                try:
                    await self.release.wait()
                finally:
                    self.stopped.set()
                return {}

        requester, worker = Requester(), IgnoresCancel()
        await job_harness.start(requester, worker)
        call_task = asyncio.create_task(requester.ask("responder", "go on"))
        await worker.started.get()
        await cancelled(call_task)
        await worker.went_on.wait()
        await job_harness.end(worker)
        await job_harness.settle()
        assert worker.stopped.is_set()

    async def test_the_end_of_a_worker_whose_handler_resists_takes_bounded_time(
        self, job_harness: JobHarness, job_log
    ):
        class Resisting(Responder):
            job_cancel_grace = 0.01

            @job(name="resist")
            async def resist(self, message: BusJobRequestMessage) -> dict:
                self.started.put_nowait(message.job_id)
                while not self.release.is_set():
                    try:
                        await self.release.wait()
                    except asyncio.CancelledError:
                        continue
                return {}

        requester, worker = Requester(), Resisting("resisting")
        await job_harness.start(requester, worker)
        call_task = asyncio.create_task(requester.ask("resisting", "resist"))
        await worker.started.get()
        await job_harness.end(worker)
        with pytest.raises(JobCancelledError, match="'resisting' stopped"):
            await call_task
        assert any("resists cancellation" in record.message for record in job_log)
        worker.release.set()
        await job_harness.settle()
