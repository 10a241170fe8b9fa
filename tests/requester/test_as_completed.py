"""The outcomes and responses of a group, each as soon as it is known."""

import asyncio

import pytest
from pipecat.bus.messages import BusJobRequestMessage
from support.workers import Requester, Responder, cancelled

from pipecat_jobs import (
    BaseWorker,
    CancelReason,
    InvalidJobError,
    JobGroupContext,
    JobGroupError,
    JobGroupEvent,
    OutcomeStatus,
    job,
)
from pipecat_jobs.testing import JobHarness

pytestmark = pytest.mark.every_bus


class Failing(BaseWorker):
    @job(name="wait")
    async def fail(self, message: BusJobRequestMessage) -> dict:
        raise ValueError(f"{self.name} cannot")


async def test_outcomes_come_in_the_order_in_which_the_jobs_end(job_harness: JobHarness):
    requester, a, b = Requester(), Responder("a"), Responder("b")
    await job_harness.start(requester, a, b, Failing("failing"))
    found = []
    async with requester.job_group(
        "a", "b", "failing", name="wait", cancel_on_error=False
    ) as group:
        async for outcome in group.as_completed():
            found.append((outcome.worker, outcome.status))
            (a if outcome.worker == "b" else b).release.set()
    assert found == [
        ("failing", OutcomeStatus.ERROR),
        ("b", OutcomeStatus.COMPLETED),
        ("a", OutcomeStatus.COMPLETED),
    ]
    assert list(group.outcomes) == ["failing", "b", "a"]


async def test_leaving_the_loop_early_cancels_the_rest_and_the_block_ends_without_error(
    job_harness: JobHarness,
):
    requester, quick, slow = Requester(), Responder("quick"), Responder("slow")
    await job_harness.start(requester, slow, quick)
    quick.release.set()
    async with requester.job_group("slow", "quick", name="wait") as group:
        await slow.started.get()
        async for outcome in group.as_completed():
            assert outcome.worker == "quick"
            break
    assert group.responses == {"quick": {"from": "quick"}}
    assert group.outcomes["slow"].cancel_reason is CancelReason.NOT_NEEDED
    await job_harness.settle()
    assert slow.cancelled == slow.ran
    assert requester.fired().count("on_job_completed") == 1
    assert job_harness.left_behind() == []


async def test_a_failure_after_the_loop_was_left_raises_nothing(job_harness: JobHarness):
    class FailsLate(Responder):
        @job(name="wait")
        async def wait_for_release(self, message: BusJobRequestMessage) -> dict:
            await self.release.wait()
            raise ValueError("late")

    requester, quick, failing = Requester(), Responder("quick"), FailsLate("failing")
    await job_harness.start(requester, quick, failing)
    quick.release.set()
    async with requester.job_group("quick", "failing", name="wait") as group:
        async for _ in group.as_completed():
            break
        failing.release.set()
        await job_harness.settle()
    assert group.outcomes["failing"].status is OutcomeStatus.ERROR
    assert job_harness.left_behind() == []


async def test_a_loop_to_the_end_raises_as_the_group_does(job_harness: JobHarness):
    requester, waiting = Requester(), Responder("waiting")
    await job_harness.start(requester, waiting, Failing("failing"))
    found = []
    with pytest.raises(JobGroupError, match="failing cannot"):
        async with requester.job_group("waiting", "failing", name="wait") as group:
            async for outcome in group.as_completed():
                found.append((outcome.worker, outcome.cancel_reason))
    assert found == [("failing", None), ("waiting", CancelReason.GROUP_FAILED)]


async def test_an_exception_in_the_loop_cancels_the_group(job_harness: JobHarness):
    requester, quick, slow = Requester(), Responder("quick"), Responder("slow")
    await job_harness.start(requester, quick, slow)
    quick.release.set()
    with pytest.raises(KeyError):
        async with requester.job_group("quick", "slow", name="wait") as group:
            async for _ in group.as_completed():
                raise KeyError
    assert group.outcomes["slow"].cancel_reason is CancelReason.REQUESTER_CANCELLED


async def test_cancelling_a_task_that_waits_for_an_outcome_cancels_the_group(
    job_harness: JobHarness,
):
    requester, slow = Requester(), Responder("slow")
    await job_harness.start(requester, slow)

    async def ask() -> None:
        async with requester.job_group("slow", name="wait") as group:
            async for _ in group.as_completed():
                pass

    asking = asyncio.create_task(ask())
    await slow.started.get()
    await cancelled(asking)
    await job_harness.settle()
    assert slow.cancelled == slow.ran


@pytest.mark.filterwarnings("ignore:the job for .* was never requested")
async def test_outcomes_are_asked_for_within_the_block():
    context = Requester().job_group("a")
    with pytest.raises(InvalidJobError, match="outside of the group's block"):
        context.as_completed()


async def test_responses_are_among_the_events_of_a_group(job_harness: JobHarness):
    requester, a, b = Requester(), Responder("a"), Responder("b")
    await job_harness.start(requester, a, b, Failing("failing"))
    b.release.set()
    events = []
    async with requester.job_group(
        "a", "b", "failing", name="wait", cancel_on_error=False
    ) as group:
        async for event in group:
            events.append(event)
            a.release.set()
    assert events == [
        JobGroupEvent(JobGroupContext.RESPONSE, name, {"from": name}) for name in ("b", "a")
    ]
    assert group.RESPONSE == "response"


async def test_the_response_of_a_stream_follows_its_end(job_harness: JobHarness):
    requester = Requester()
    await job_harness.start(requester, Responder("a"))
    async with requester.job_group("a", name="count", payload={"to": 1}) as group:
        types = [event.type async for event in group]
    assert types == ["stream_start", "stream_data", "stream_end", "response"]


async def test_the_events_of_a_single_job_have_no_response(job_harness: JobHarness):
    requester = Requester()
    await job_harness.start(requester, Responder())
    async with requester.job("responder", name="echo") as j:
        assert [event async for event in j] == []


async def test_a_queue_that_a_bot_sets_gets_no_response(job_harness: JobHarness):
    requester, responder = Requester(), Responder()
    await job_harness.start(requester, responder)
    group = await requester.create_job_group_and_request_job(["responder"], name="wait")
    group.event_queue = asyncio.Queue()
    responder.release.set()
    await group.wait()
    assert group.event_queue.get_nowait() is None
