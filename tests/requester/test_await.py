"""Awaiting a job or a group in place of entering its context."""

import asyncio
from typing import Any

import pytest
from pipecat.bus.messages import BusJobRequestMessage
from support.workers import Delegator, Requester, Responder, cancelled

from pipecat_jobs import (
    BaseWorker,
    InvalidJobError,
    JobError,
    JobGroupError,
    JobTimeoutError,
    OutcomeStatus,
    job,
)
from pipecat_jobs._requester.events import JobEvents
from pipecat_jobs.testing import JobHarness

pytestmark = pytest.mark.every_bus


async def test_awaiting_a_job_gives_its_response(job_harness: JobHarness):
    requester = Requester()
    await job_harness.start(requester, Responder())

    response = await requester.job("responder", name="echo", payload={"n": 1}, timeout=60)

    assert response == {"from": "responder", "payload": {"n": 1}}


async def test_awaiting_a_group_gives_its_responses_by_worker_in_the_order_of_the_call(
    job_harness: JobHarness,
):
    requester, slow, quick = Requester(), Responder("slow"), Responder("quick")
    await job_harness.start(requester, slow, quick)
    quick.release.set()

    async def ask() -> dict[str, Any]:
        return await requester.job_group("slow", "quick", name="wait")

    asking = asyncio.create_task(ask())
    await slow.started.get()
    await quick.started.get()
    slow.release.set()

    assert list((await asking).items()) == [
        ("slow", {"from": "slow"}),
        ("quick", {"from": "quick"}),
    ]


async def test_awaiting_a_group_leaves_out_the_workers_that_did_not_complete(
    job_harness: JobHarness,
):
    class Failing(BaseWorker):
        @job(name="echo")
        async def fail(self, message: BusJobRequestMessage) -> dict:
            raise ValueError("no such topic")

    requester = Requester()
    await job_harness.start(requester, Responder("a"), Failing("b"))
    responses = await requester.job_group("a", "b", name="echo", cancel_on_error=False)
    assert list(responses) == ["a"]


async def test_awaiting_raises_the_errors_that_leaving_the_context_raises(
    job_harness: JobHarness,
):
    requester = Requester()
    await job_harness.start(requester, Responder())

    with pytest.raises(JobError, match="no such topic") as raised:
        await requester.job("responder", name="raise")
    assert not isinstance(raised.value, JobGroupError)
    with pytest.raises(JobGroupError, match="no such topic"):
        await requester.job_group("responder", name="raise")
    with pytest.raises(JobTimeoutError):
        await requester.job("responder", name="wait", timeout=0.01)


async def test_cancelling_the_task_that_awaits_cancels_the_job_and_those_below_it(
    job_harness: JobHarness,
):
    requester, middle, last = Requester(), Delegator("middle", asks="last"), Responder("last")
    await job_harness.start(requester, middle, last)
    context = requester.job("middle", name="wait")

    async def ask() -> None:
        await context

    asking = asyncio.create_task(ask())
    await last.started.get()
    await cancelled(asking)
    await job_harness.settle()

    assert last.cancelled == last.ran
    assert context.outcome is not None
    assert context.outcome.status is OutcomeStatus.CANCELLED
    assert job_harness.left_behind() == []


async def test_jobs_are_gathered_as_any_awaitable_is(job_harness: JobHarness):
    requester = Requester()
    await job_harness.start(requester, Responder("a"), Responder("b"))
    async with asyncio.timeout(60):
        first, second = await asyncio.gather(
            requester.job("a", name="echo"), requester.job("b", name="echo")
        )
    assert (first["from"], second["from"]) == ("a", "b")


async def test_an_awaited_job_keeps_no_events(
    job_harness: JobHarness, monkeypatch: pytest.MonkeyPatch
):
    made: list[JobEvents] = []
    init = JobEvents.__init__

    def keep(self: JobEvents, **options: Any) -> None:
        made.append(self)
        init(self, **options)

    monkeypatch.setattr(JobEvents, "__init__", keep)
    requester = Requester()
    await job_harness.start(requester, Responder())
    await requester.job("responder", name="count", payload={"to": 3})
    (events,) = made
    assert events.queue is None


async def test_a_context_is_entered_or_awaited_once(job_harness: JobHarness):
    requester = Requester()
    await job_harness.start(requester, Responder())
    context = requester.job("responder", name="echo")
    await context
    assert context.response["from"] == "responder"
    with pytest.raises(InvalidJobError, match="once"):
        await context
    with pytest.raises(InvalidJobError, match="once"):
        async with context:
            pass


@pytest.mark.not_on("routed", "redis", "pubsub", reason="no bus is used")
async def test_a_job_that_is_neither_awaited_nor_entered_warns_as_a_coroutine_does():
    with pytest.warns(RuntimeWarning, match="the job for 'wiki', 'news' was never requested"):
        Requester().job_group("wiki", "news")


async def test_a_task_needs_a_function_that_awaits_the_job(job_harness: JobHarness):
    requester = Requester()
    await job_harness.start(requester, Responder())

    async def ask() -> dict[str, Any]:
        return await requester.job("responder", name="echo")

    async with asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(ask()) for _ in range(2)]
    assert [task.result()["from"] for task in asked] == ["responder"] * 2
    assert (await asyncio.wait_for(requester.job("responder", name="echo"), 60)) == {
        "from": "responder",
        "payload": None,
    }
