"""Retries, hedges, keys, inherited deadlines and interceptors, two or three of them at once."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from pipecat.bus.messages import BusJobRequestMessage
from support.workers import until

from pipecat_jobs import (
    BaseWorker,
    CancelReason,
    JobCall,
    JobCancelledError,
    JobError,
    JobInterceptor,
    JobLifeEvent,
    JobLifeEventKind,
    JobRefusal,
    OpenJobState,
    OutcomeStatus,
    Retry,
    job,
)
from pipecat_jobs.testing import JobHarness

pytestmark = pytest.mark.every_bus

#: Seconds; longer than any part of a test takes.
LONG = 60.0
AT_SEA = {"ship": 7}


class Fleet(BaseWorker):
    """A worker whose handlers of one key run until the test lets them go on."""

    def __init__(self, name: str = "fleet", *, fails: int = 0):
        super().__init__(name)
        self.fails = fails
        self.payloads: list[dict[str, Any] | None] = []
        self.release = asyncio.Event()

    async def _fly(self, message: BusJobRequestMessage) -> dict[str, Any]:
        self.payloads.append(message.payload)
        await self.release.wait()
        if len(self.payloads) <= self.fails:
            raise ValueError("no wind")
        return {"by": self.name}

    @job(name="refuse", key="ship", on_busy="refuse")
    async def fly_or_refuse(self, message: BusJobRequestMessage) -> dict[str, Any]:
        return await self._fly(message)

    @job(name="replace", key="ship", on_busy="replace")
    async def fly_instead(self, message: BusJobRequestMessage) -> dict[str, Any]:
        return await self._fly(message)

    @job(name="work")
    async def work(self, message: BusJobRequestMessage) -> dict[str, Any]:
        return await self._fly(message)


async def test_a_job_that_is_refused_as_busy_is_asked_again_until_the_key_is_free(
    job_harness: JobHarness,
):
    requester, fleet = BaseWorker("requester"), Fleet()
    await job_harness.start(requester, fleet)
    first = asyncio.ensure_future(requester.job("fleet", name="refuse", payload=AT_SEA))
    await until(lambda: fleet.payloads)
    context = requester.job(
        "fleet",
        name="refuse",
        payload=AT_SEA,
        retry=Retry(attempts=10_000, wait_initial=0.01, wait_max=0.02),
    )
    second = asyncio.ensure_future(context)
    await until(lambda: OpenJobState.RETRYING in [job.state for job in requester.open_jobs])
    fleet.release.set()
    assert await first == await second == {"by": "fleet"}
    assert context.outcome is not None
    assert {each.refusal for each in context.outcome.attempts} == {JobRefusal.BUSY}


async def test_a_job_that_was_replaced_is_not_asked_again_whatever_retry_says(
    job_harness: JobHarness,
):
    requester, fleet = BaseWorker("requester"), Fleet()
    await job_harness.start(requester, fleet)
    retry = Retry(attempts=5, on=lambda _: True, wait_initial=0)
    asked = [
        asyncio.ensure_future(
            requester.job("fleet", name="replace", payload=AT_SEA, retry=retry, timeout=LONG)
        )
    ]
    await until(lambda: fleet.payloads)
    asked.append(
        asyncio.ensure_future(
            requester.job("fleet", name="replace", payload=AT_SEA, retry=retry, timeout=LONG)
        )
    )
    with pytest.raises(JobCancelledError) as raised:
        await asked[0]
    assert raised.value.outcomes["fleet"].cancel_reason is CancelReason.REPLACED
    fleet.release.set()
    assert await asked[1] == {"by": "fleet"}
    assert len(fleet.payloads) == 2


async def test_a_payload_that_an_interceptor_replaced_is_sent_with_each_attempt(
    job_harness: JobHarness,
):
    events: list[tuple[JobLifeEventKind, str]] = []

    class Translate(JobInterceptor):
        def on_event(self, event: JobLifeEvent) -> None:
            events.append((event.kind, event.worker))

        async def ask(self, call: JobCall, proceed: Any) -> None:
            await proceed(replace(call, payload={"ship": 8}))

    requester, a, b = BaseWorker("requester"), Fleet("a", fails=2), Fleet("b")
    requester.add_job_interceptor(Translate())
    a.release.set()
    await job_harness.start(requester, a, b)
    responses = await requester.job_group(
        "a",
        "b",
        name="refuse",
        payload=AT_SEA,
        need="first",
        hedge_after=LONG,
        retry=Retry(on={OutcomeStatus.ERROR}, wait_initial=0),
    )
    assert responses == {"a": {"by": "a"}}
    assert a.payloads == [{"ship": 8}] * 3
    assert events.count((JobLifeEventKind.SENT, "a")) == 3
    settled = [worker for kind, worker in events if kind is JobLifeEventKind.SETTLED]
    assert settled == ["a", "b"]
    assert not b.payloads


async def test_a_group_that_succeeds_leaves_no_job_that_waits_for_its_next_attempt(
    job_harness: JobHarness,
):
    requester, failing, slow = BaseWorker("requester"), Fleet("failing", fails=9), Fleet("slow")
    failing.release.set()
    await job_harness.start(requester, failing, slow)
    asking = asyncio.ensure_future(
        requester.job_group(
            "failing",
            "slow",
            name="work",
            need="first",
            retry=Retry(on={OutcomeStatus.ERROR}, wait_initial=LONG, wait_max=LONG),
        )
    )
    await until(lambda: OpenJobState.RETRYING in [job.state for job in requester.open_jobs])
    slow.release.set()
    assert await asking == {"slow": {"by": "slow"}}
    await job_harness.settle()
    assert requester.open_jobs == ()
    assert len(failing.payloads) == 1
    assert job_harness.left_behind() == []


@pytest.mark.not_on("pubsub", reason="it carries none of our headers")
async def test_no_attempt_begins_after_a_deadline_that_is_inherited(job_harness: JobHarness):
    failing = Fleet("failing", fails=10_000)
    failing.release.set()

    class Host(BaseWorker):
        @job
        async def look_up(self) -> int:
            retry = Retry(
                attempts=10_000, on={OutcomeStatus.ERROR}, wait_initial=0.01, wait_max=0.02
            )
            try:
                await self.job("failing", name="work", timeout=LONG, retry=retry)
            except JobError:
                return len(failing.payloads)
            raise AssertionError("the job completed")

    requester, host = BaseWorker("requester"), Host("host")
    await job_harness.start(requester, host, failing)
    try:
        tried = await requester.job("host", Host.look_up.request(), timeout=0.5)
    except JobError:
        # The handler and its requester have the same deadline: either may come first.
        await job_harness.settle()
        tried = len(failing.payloads)
    await job_harness.settle()
    assert len(failing.payloads) == tried
    assert host.open_jobs == ()
    assert job_harness.left_behind() == []
