"""``hedge_after=``: a second attempt beside a slow one, and workers that are asked in turn."""

import asyncio
import math
from typing import Any

import pytest
from pipecat.bus.messages import BusJobRequestMessage
from support.workers import Requester, cancelled, until

from pipecat_jobs import (
    BaseWorker,
    CancelReason,
    InvalidJobError,
    InvalidJobTypeError,
    JobCancelledError,
    JobError,
    JobEvent,
    JobGroup,
    JobTimeoutError,
    OutcomeStatus,
    Retry,
    WorkerNotReadyError,
    job,
    job_attempt,
)
from pipecat_jobs.testing import JobHarness

pytestmark = pytest.mark.every_bus

#: Seconds; longer than any part of a test takes.
LONG = 60.0
#: Seconds after which a test hedges that waits for the second attempt.
SOON = 0.01


class Slow(BaseWorker):
    """A worker whose calls end as the test says."""

    def __init__(self, name: str = "slow"):
        super().__init__(name)
        self.calls: list[str] = []
        self.attempts: list[int] = []
        self.begun: asyncio.Queue[str] = asyncio.Queue()
        self.cancelled: list[str] = []
        self.ends: dict[str, asyncio.Future[object]] = {}

    async def _work(self, message: BusJobRequestMessage) -> dict:
        self.calls.append(message.job_id)
        number = len(self.calls)
        self.attempts.append(job_attempt(message))
        end = self.ends[message.job_id] = asyncio.get_running_loop().create_future()
        self.begun.put_nowait(message.job_id)
        try:
            await end
        except asyncio.CancelledError:
            self.cancelled.append(message.job_id)
            raise
        return {"from": self.name, "call": number}

    @job(name="work")
    async def work(self, message: BusJobRequestMessage) -> dict:
        return await self._work(message)

    @job(name="pay", run_once=True)
    async def pay(self, message: BusJobRequestMessage) -> dict:
        return await self._work(message)

    @job(name="stream")
    async def stream(self, message: BusJobRequestMessage):
        await self._work(message)
        yield {"call": self.calls.index(message.job_id) + 1}
        yield {"call": self.calls.index(message.job_id) + 1}

    def complete(self, job_id: str) -> None:
        self.ends[job_id].set_result(None)

    def fail(self, job_id: str) -> None:
        self.ends[job_id].set_exception(ValueError(f"no {self.calls.index(job_id) + 1}"))


async def start(job_harness: JobHarness) -> tuple[Requester, Slow]:
    requester, slow = Requester(), Slow()
    await job_harness.start(requester, slow)
    return requester, slow


@pytest.mark.parametrize("winner", [0, 1])
async def test_the_first_of_two_attempts_to_respond_counts_and_the_other_is_cancelled(
    job_harness: JobHarness, winner: int
):
    requester, slow = await start(job_harness)
    async with requester.job("slow", name="work", timeout=LONG, hedge_after=SOON) as j:
        asked = [await slow.begun.get() for _ in range(2)]
        slow.complete(asked[winner])

    assert j.response == {"from": "slow", "call": winner + 1}
    assert j.outcome is not None
    [other] = j.outcome.attempts
    assert (other.status, other.cancel_reason) == (
        OutcomeStatus.CANCELLED,
        CancelReason.NOT_NEEDED,
    )
    await until(lambda: slow.cancelled == [asked[1 - winner]])
    await job_harness.settle()
    assert [(hook, message.job_id) for hook, message in requester.hooks] == [
        ("on_job_response", j.job_id),
        ("on_job_completed", j.job_id),
    ]
    assert job_harness.left_behind() == []
    assert not requester._WorkerJobs__requester._later_attempts
    assert not requester._WorkerJobs__requester._liveness._watches
    assert len(requester._WorkerJobs__requester._cancellation._unacknowledged) == 0


async def test_a_job_that_responds_in_time_has_one_attempt(job_harness: JobHarness):
    requester, slow = await start(job_harness)
    async with requester.job("slow", name="work", hedge_after=LONG) as j:
        slow.complete(await slow.begun.get())
    assert j.outcome is not None
    assert j.outcome.attempts == ()
    assert len(slow.calls) == 1


@pytest.mark.parametrize("first", [0, 1])
async def test_a_failed_attempt_leaves_the_job_to_the_other(job_harness: JobHarness, first: int):
    requester, slow = await start(job_harness)
    async with requester.job("slow", name="work", timeout=LONG, hedge_after=SOON) as j:
        asked = [await slow.begun.get() for _ in range(2)]
        group = requester.job_groups[j.job_id]
        assert isinstance(group, JobGroup)
        slow.fail(asked[first])
        await until(lambda: len(group.handles["slow"].open_ids) == 1)
        assert j.outcome is None
        slow.complete(asked[1 - first])
    assert j.outcome is not None
    assert [each.status for each in j.outcome.attempts] == [OutcomeStatus.ERROR]
    await job_harness.settle()
    assert requester.fired() == ["on_job_response", "on_job_completed"]


async def test_a_job_fails_when_both_attempts_have_failed(job_harness: JobHarness):
    requester, slow = await start(job_harness)
    with pytest.raises(JobError, match="no 2") as raised:
        async with requester.job("slow", name="work", hedge_after=SOON) as j:
            asked = [await slow.begun.get() for _ in range(2)]
            group = requester.job_groups[j.job_id]
            assert isinstance(group, JobGroup)
            slow.fail(asked[0])
            await until(lambda: len(group.handles["slow"].open_ids) == 1)
            slow.fail(asked[1])
    assert [each.cause for each in raised.value.outcomes["slow"].attempts] == ["ValueError: no 1"]


async def test_an_attempt_that_fails_before_the_hedge_ends_the_job(job_harness: JobHarness):
    requester, slow = await start(job_harness)
    with pytest.raises(JobError, match="no 1"):
        async with requester.job("slow", name="work", hedge_after=LONG):
            slow.fail(await slow.begun.get())
    await job_harness.settle()
    assert len(slow.calls) == 1


async def test_a_retry_follows_when_both_attempts_have_failed(job_harness: JobHarness):
    requester, slow = await start(job_harness)
    retry = Retry(on={OutcomeStatus.ERROR}, wait_initial=0)
    async with requester.job("slow", name="work", hedge_after=SOON, retry=retry) as j:
        for job_id in [await slow.begun.get() for _ in range(2)]:
            slow.fail(job_id)
        slow.complete(await slow.begun.get())
    assert j.response["call"] == 3
    assert j.outcome is not None
    assert len(j.outcome.attempts) == 2


async def test_a_cancel_reaches_both_attempts(job_harness: JobHarness):
    requester, slow = await start(job_harness)
    with pytest.raises(JobCancelledError):
        async with requester.job("slow", name="work", hedge_after=SOON) as j:
            asked = [await slow.begun.get() for _ in range(2)]
            await requester.cancel_job_group(j.job_id)
    await until(lambda: sorted(slow.cancelled) == sorted(asked))
    await job_harness.settle()
    # One CANCELLED response for the job, with its id.
    assert [(hook, message.job_id) for hook, message in requester.hooks] == [
        ("on_job_response", j.job_id)
    ]
    assert len(requester._WorkerJobs__requester._cancellation._unacknowledged) == 0


async def test_the_deadline_ends_both_attempts(job_harness: JobHarness):
    requester, slow = await start(job_harness)
    with pytest.raises(JobTimeoutError):
        async with requester.job("slow", name="work", timeout=1.0, hedge_after=SOON):
            asked = [await slow.begun.get() for _ in range(2)]
    await until(lambda: sorted(slow.cancelled) == sorted(asked))


async def test_a_cancelled_requester_leaves_no_attempt(job_harness: JobHarness):
    requester, slow = await start(job_harness)
    asking = asyncio.create_task(requester.ask("slow", "work", hedge_after=SOON))
    asked = [await slow.begun.get() for _ in range(2)]
    await cancelled(asking)
    await until(lambda: sorted(slow.cancelled) == sorted(asked))


@pytest.mark.not_on("pubsub", reason="it carries no headers")
async def test_the_second_attempt_knows_of_the_first(job_harness: JobHarness):
    requester, slow = await start(job_harness)
    async with requester.job("slow", name="work", hedge_after=SOON):
        asked = [await slow.begun.get() for _ in range(2)]
        slow.complete(asked[0])
    assert slow.attempts == [1, 2]


@pytest.mark.not_on("pubsub", reason="it carries no headers")
async def test_a_run_once_handler_does_not_begin_a_second_attempt(job_harness: JobHarness):
    requester, slow = await start(job_harness)
    async with requester.job("slow", name="pay", hedge_after=SOON) as j:
        asked = await slow.begun.get()
        group = requester.job_groups[j.job_id]
        assert isinstance(group, JobGroup)
        attempts = group.handles["slow"].attempts
        assert attempts is not None
        await until(lambda: len(attempts.made) == 2 and len(attempts.open) == 1)
        slow.complete(asked)
    assert slow.calls == [asked]
    assert j.response["call"] == 1


async def test_the_first_attempt_that_streams_is_the_one_that_is_read(job_harness: JobHarness):
    requester, slow = await start(job_harness)
    async with requester.job("slow", name="stream", timeout=LONG, hedge_after=SOON) as j:
        asked = [await slow.begun.get() for _ in range(2)]
        slow.complete(asked[1])
        chunks = [event.data async for event in j if event.type == JobEvent.STREAM_DATA]
    assert chunks == [{"call": 2}, {"call": 2}]
    await until(lambda: slow.cancelled == [asked[0]])
    assert j.outcome is not None
    assert [each.cancel_reason for each in j.outcome.attempts] == [CancelReason.NOT_NEEDED]


async def test_an_update_can_be_requested_of_both_attempts(job_harness: JobHarness):
    class Reports(Slow):
        async def on_job_update_requested(self, message) -> None:
            await self.send_job_update(message.job_id, {"of": message.job_id})

    requester, slow = Requester(), Reports()
    await job_harness.start(requester, slow)
    async with requester.job("slow", name="work", timeout=LONG, hedge_after=SOON) as j:
        asked = [await slow.begun.get() for _ in range(2)]
        await requester.request_job_update(j.job_id, "slow")
        reported = [event.data["of"] for event in [await anext(j), await anext(j)]]
        assert sorted(reported) == sorted(asked)
        slow.complete(asked[0])


# -- workers in turn -----------------------------------------------------------------------------


async def ask_in_turn(requester: BaseWorker, *names: str, **keywords: Any) -> JobGroup:
    group = await requester.create_job_group_and_request_job(
        list(names), name="work", need="first", **keywords
    )
    assert isinstance(group, JobGroup)
    return group


async def test_the_next_worker_is_asked_when_the_one_before_is_slow(job_harness: JobHarness):
    requester, a, b, c = Requester(), Slow("a"), Slow("b"), Slow("c")
    await job_harness.start(requester, a, b, c)
    group = await ask_in_turn(requester, "a", "b", "c", timeout=LONG, hedge_after=SOON)
    first, second, _ = [await each.begun.get() for each in (a, b, c)]
    b.complete(second)
    await group.wait()
    assert group.responses == {"b": {"from": "b", "call": 1}}
    assert {
        name: outcome.cancel_reason for name, outcome in group.outcomes.items() if name != "b"
    } == {"a": CancelReason.NOT_NEEDED, "c": CancelReason.NOT_NEEDED}
    await until(lambda: a.cancelled == [first] and c.cancelled)


async def test_a_worker_whose_turn_has_not_come_is_not_asked(job_harness: JobHarness):
    requester, a, b = Requester(), Slow("a"), Slow("b")
    await job_harness.start(requester, a, b)
    group = await ask_in_turn(requester, "a", "b", hedge_after=LONG)
    a.complete(await a.begun.get())
    await group.wait()
    await job_harness.settle()
    assert b.calls == []
    assert group.outcomes["b"].cancel_reason is CancelReason.NOT_NEEDED
    assert job_harness.left_behind() == []


async def test_the_next_worker_is_asked_at_once_when_the_one_before_failed(
    job_harness: JobHarness,
):
    requester, a, b = Requester(), Slow("a"), Slow("b")
    await job_harness.start(requester, a, b)
    group = await ask_in_turn(requester, "a", "b", hedge_after=LONG)
    a.fail(await a.begun.get())
    b.complete(await b.begun.get())
    await group.wait()
    assert group.responses == {"a": group.responses["a"], "b": {"from": "b", "call": 1}}
    assert group.outcomes["a"].status is OutcomeStatus.ERROR


async def test_a_worker_that_is_not_ready_is_passed_over(job_harness: JobHarness):
    requester, b = Requester(), Slow("b")
    await job_harness.start(requester, b)
    asking = asyncio.create_task(
        ask_in_turn(requester, "not ready", "b", timeout=LONG, hedge_after=SOON)
    )
    b.complete(await b.begun.get())
    group = await asking
    await group.wait()
    assert group.responses == {"b": {"from": "b", "call": 1}}
    await job_harness.settle()
    assert job_harness.left_behind() == []


@pytest.mark.parametrize("ready", [True, False])
async def test_each_worker_has_to_be_ready_in_its_turn_within_ready_within(
    job_harness: JobHarness, ready: bool
):
    requester, a = Requester(), Slow("a")
    await job_harness.start(requester, *([a] if ready else []))
    group = await ask_in_turn(requester, "a", "b", "c", hedge_after=LONG, ready_within=SOON)
    if ready:
        a.fail(await a.begun.get())
    with pytest.raises(WorkerNotReadyError, match=r"'c' not ready within 0.01 s \(ready_within\)"):
        await asyncio.wait_for(group.wait(), LONG)
    assert [group.outcomes[name].status for name in "abc"] == [
        OutcomeStatus.ERROR if ready else OutcomeStatus.TIMED_OUT,
        OutcomeStatus.TIMED_OUT,
        OutcomeStatus.TIMED_OUT,
    ]
    assert group.outcomes["b"].reason == "not ready within 0.01 s"
    await job_harness.settle()
    assert job_harness.left_behind() == []


async def test_a_deadline_that_passes_before_a_worker_s_turn_is_late_for_those_asked(
    job_harness: JobHarness,
):
    requester, a, b = Requester(), Slow("a"), Slow("b")
    await job_harness.start(requester, a, b)
    group = await ask_in_turn(requester, "a", "b", timeout=0.5, hedge_after=LONG)
    with pytest.raises(JobTimeoutError, match="got no response"):
        await group.wait()
    assert b.calls == []


# -- what hedge_after takes ----------------------------------------------------------------------


@pytest.mark.not_on("routed", "redis", "pubsub", reason="no bus is used")
@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"hedge_after": 0}, InvalidJobError, "more than zero seconds"),
        ({"hedge_after": -1}, InvalidJobError, "more than zero seconds"),
        ({"hedge_after": math.inf}, InvalidJobError, "more than zero seconds"),
        ({"hedge_after": "1"}, InvalidJobTypeError, "hedge_after"),
        ({"hedge_after": 1, "run_once": True}, InvalidJobError, "run_once"),
        ({"hedge_after": 1, "affinity": "customer 7"}, InvalidJobError, "affinity"),
    ],
)
async def test_a_job_refuses_a_hedge_that_cannot_be(
    keywords: dict[str, Any], error: type[Exception], message: str
):
    with pytest.raises(error, match=message):
        BaseWorker("w").job("other", **keywords)


async def test_a_group_that_needs_every_worker_refuses_a_hedge(job_harness: JobHarness):
    requester, slow = await start(job_harness)
    with pytest.raises(InvalidJobError, match="need='first'"):
        requester.job_group("slow", "other", hedge_after=1.0)
    assert slow.calls == []
