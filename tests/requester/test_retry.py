"""``retry=``: which jobs are asked for again, when, and what their outcome tells."""

import asyncio
import math
from typing import Any

import pytest
from pipecat.bus.messages import BusJobRequestMessage, BusJobResponseMessage
from support.workers import Requester, until

from pipecat_jobs import (
    BaseWorker,
    CancelReason,
    InvalidJobError,
    InvalidJobTypeError,
    JobCancelledError,
    JobError,
    JobEvent,
    JobInterceptor,
    JobLifeEvent,
    JobLifeEventKind,
    JobOutcome,
    JobRefusal,
    JobStatus,
    JobTimeoutError,
    NoJobHandlerError,
    OutcomeStatus,
    Retry,
    WorkerLostError,
    job,
    job_attempt,
)
from pipecat_jobs._requester.attempts import compute_wait
from pipecat_jobs.testing import JobHarness

pytestmark = pytest.mark.every_bus

#: Seconds; longer than any part of a test takes.
LONG = 60.0
ERROR, LOST = OutcomeStatus.ERROR, OutcomeStatus.LOST


def at_once(**fields: Any) -> Retry:
    return Retry(wait_initial=0, **fields)


class Flaky(BaseWorker):
    """A worker whose handlers fail until they have been called often enough."""

    def __init__(self, fails: int, name: str = "flaky"):
        super().__init__(name)
        self.fails = fails
        self.calls: list[str] = []
        self.attempts: list[int] = []
        self.begun: asyncio.Queue[str] = asyncio.Queue()
        self.cancelled: list[str] = []

    def _note(self, message: BusJobRequestMessage) -> int:
        self.calls.append(message.job_id)
        self.attempts.append(job_attempt(message))
        self.begun.put_nowait(message.job_id)
        return len(self.calls)

    @job(name="work")
    async def work(self, message: BusJobRequestMessage) -> dict:
        number = self._note(message)
        if number <= self.fails:
            raise ValueError(f"failure {number}")
        return {"call": number, "payload": message.payload}

    @job(name="stuck")
    async def be_stuck(self, message: BusJobRequestMessage) -> dict:
        number = self._note(message)
        if number <= self.fails:
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled.append(message.job_id)
        return {"call": number}

    @job(name="stream")
    async def stream(self, message: BusJobRequestMessage):
        number = self._note(message)
        yield {"call": number}
        if number <= self.fails:
            raise ValueError(f"failure {number}")
        yield {"call": number, "rest": True}

    @job(name="pay", run_once=True)
    async def pay(self, message: BusJobRequestMessage) -> dict:
        number = self._note(message)
        if number <= self.fails:
            await asyncio.Event().wait()
        return {"call": number}


class Inactive(Flaky):
    takes_jobs_when_inactive = False


async def start(job_harness: JobHarness, worker: Flaky) -> Requester:
    requester = Requester()
    await job_harness.start(requester, worker)
    return requester


async def test_an_error_that_retry_names_is_followed_by_another_attempt(job_harness: JobHarness):
    requester = await start(job_harness, flaky := Flaky(2))

    async with requester.job(
        "flaky", name="work", payload={"n": 1}, timeout=LONG, retry=at_once(on={ERROR})
    ) as j:
        pass

    assert j.response == {"call": 3, "payload": {"n": 1}}
    assert len(set(flaky.calls)) == 3
    assert flaky.calls[0] == j.job_id
    outcome = j.outcome
    assert outcome is not None
    assert outcome.completed
    assert [(each.status, each.error and each.error.message) for each in outcome.attempts] == [
        (ERROR, "failure 1"),
        (ERROR, "failure 2"),
    ]
    assert [each.attempts for each in outcome.attempts] == [(), ()]
    await job_harness.settle()
    assert requester.fired() == ["on_job_response", "on_job_completed"]
    response = requester.hooks[0][1]
    assert (response.job_id, response.response) == (j.job_id, j.response)


async def test_times_count_for_the_whole_job_and_for_each_attempt(job_harness: JobHarness):
    requester = await start(job_harness, Flaky(1))
    async with requester.job("flaky", name="work", retry=at_once(on={ERROR})) as j:
        pass
    outcome = j.outcome
    assert outcome is not None
    [first] = outcome.attempts
    assert first.waited == outcome.waited
    assert 0 < first.ran < outcome.ran


async def test_the_last_failure_is_raised_once_the_attempts_are_used_up(job_harness: JobHarness):
    requester = await start(job_harness, flaky := Flaky(9))

    with pytest.raises(JobError, match="failure 3") as raised:
        await requester.ask("flaky", "work", retry=at_once(attempts=3, on={ERROR}))

    outcome = raised.value.outcomes["flaky"]
    assert len(flaky.calls) == 3
    assert [each.cause for each in outcome.attempts] == [
        "ValueError: failure 1",
        "ValueError: failure 2",
    ]
    await job_harness.settle()
    assert requester.fired() == ["on_job_response", "on_job_error"]
    assert requester.hooks[0][1].job_id == requester.hooks[1][1].job_id == raised.value.job_id


@pytest.mark.parametrize(
    "retry",
    [
        at_once(),
        at_once(attempts=1, on={ERROR}),
        at_once(on={OutcomeStatus.FAILED}),
        at_once(on=lambda outcome: False),
    ],
)
async def test_an_error_that_retry_does_not_name_ends_the_job(
    job_harness: JobHarness, retry: Retry
):
    requester = await start(job_harness, flaky := Flaky(9))
    with pytest.raises(JobError):
        await requester.ask("flaky", "work", retry=retry)
    assert len(flaky.calls) == 1


async def test_a_function_decides_by_the_outcome_of_the_attempt(job_harness: JobHarness):
    requester = await start(job_harness, flaky := Flaky(9))
    seen: list[JobOutcome] = []

    def again(outcome: JobOutcome) -> bool:
        seen.append(outcome)
        return outcome.error is not None and outcome.error.message != "failure 2"

    with pytest.raises(JobError, match="failure 2"):
        await requester.ask("flaky", "work", retry=at_once(attempts=5, on=again))
    assert [outcome.cause for outcome in seen] == ["ValueError: failure 1", "ValueError: failure 2"]
    assert len(flaky.calls) == 2


async def test_a_function_that_raises_is_logged_and_the_job_ends(job_harness: JobHarness):
    requester = await start(job_harness, flaky := Flaky(9))

    def broken(_: JobOutcome) -> bool:
        raise RuntimeError("broken")

    with pytest.raises(JobError, match="failure 1"):
        await requester.ask("flaky", "work", retry=at_once(on=broken))
    assert len(flaky.calls) == 1


# -- refusals ------------------------------------------------------------------------------------


async def test_a_worker_that_refused_while_it_was_inactive_is_asked_again(job_harness: JobHarness):
    requester, inactive = Requester(), Inactive(0)
    await job_harness.start(requester, inactive)
    await inactive.deactivate_worker(inactive.name)
    await until(lambda: not inactive.active)
    refused = 0

    class Activate(JobInterceptor):
        def on_event(self, event: JobLifeEvent) -> None:
            nonlocal refused
            if event.kind is JobLifeEventKind.SENT:
                refused += 1
                if refused == 3:
                    inactive._active = True

    requester.add_job_interceptor(Activate())
    async with requester.job("flaky", name="pay", run_once=True, retry=at_once()) as j:
        pass
    assert j.outcome is not None
    assert [each.refusal for each in j.outcome.attempts] == [JobRefusal.INACTIVE] * 2
    # No handler had begun, so that this is the first time.
    assert inactive.attempts == [1]


@pytest.mark.parametrize("retry", [at_once(), at_once(on={ERROR, OutcomeStatus.FAILED})])
async def test_a_worker_without_a_handler_is_not_asked_again(job_harness: JobHarness, retry: Retry):
    requester = await start(job_harness, Flaky(0))
    with pytest.raises(NoJobHandlerError) as raised:
        await requester.ask("flaky", "unknown", retry=retry)
    assert raised.value.outcomes["flaky"].attempts == ()


async def test_a_worker_without_a_handler_is_asked_again_if_retry_names_that(
    job_harness: JobHarness,
):
    requester = await start(job_harness, Flaky(0))
    with pytest.raises(NoJobHandlerError) as raised:
        await requester.ask("flaky", "unknown", retry=at_once(on={JobRefusal.NO_HANDLER}))
    assert len(raised.value.outcomes["flaky"].attempts) == 2


# -- lost workers --------------------------------------------------------------------------------


async def test_a_job_that_was_lost_is_asked_again_and_the_lost_attempt_is_cancelled(
    job_harness: JobHarness,
):
    requester = await start(job_harness, flaky := Flaky(1))
    async with requester.job("flaky", name="stuck", timeout=LONG, retry=at_once()) as j:
        first = await flaky.begun.get()
        await requester.worker_lost("flaky", reason="its machine is down", job_id=first)
    assert j.response == {"call": 2}
    assert j.outcome is not None
    [lost] = j.outcome.attempts
    assert (lost.status, lost.reason) == (LOST, "its machine is down")
    await until(lambda: flaky.cancelled == [first])
    await job_harness.settle()
    assert requester.fired() == ["on_job_response", "on_job_completed"]


@pytest.mark.not_on("pubsub", reason="it carries no headers")
async def test_a_handler_knows_that_an_earlier_attempt_may_have_begun(job_harness: JobHarness):
    requester = await start(job_harness, flaky := Flaky(2))
    await requester.ask("flaky", "work", retry=at_once(on={ERROR}))
    assert flaky.attempts == [1, 2, 3]


async def test_a_run_once_job_that_was_lost_is_not_asked_again(job_harness: JobHarness):
    requester = await start(job_harness, flaky := Flaky(1))
    with pytest.raises(WorkerLostError):
        async with requester.job("flaky", name="stuck", run_once=True, retry=at_once(on={ERROR})):
            await flaky.begun.get()
            await requester.worker_lost("flaky", reason="its machine is down")
    assert len(flaky.calls) == 1


@pytest.mark.not_on("pubsub", reason="it carries no headers")
async def test_a_run_once_handler_does_not_begin_again(job_harness: JobHarness):
    requester = await start(job_harness, flaky := Flaky(1))
    with pytest.raises(JobError, match="run_once") as raised:
        async with requester.job("flaky", name="pay", timeout=LONG, retry=at_once()):
            await flaky.begun.get()
            await requester.worker_lost("flaky", reason="its machine is down")
    assert len(flaky.calls) == 1
    outcome = raised.value.outcomes["flaky"]
    # Another worker must not be asked because of this one.
    assert outcome.refusal is None
    assert [each.status for each in outcome.attempts] == [LOST]


@pytest.mark.not_on("redis", "pubsub", reason="a worker that ended is not seen there")
async def test_a_worker_that_has_ended_uses_up_the_attempts(job_harness: JobHarness):
    requester = await start(job_harness, flaky := Flaky(0))
    await job_harness.end(flaky)
    with pytest.raises(WorkerLostError) as raised:
        await requester.ask("flaky", "work", retry=at_once(attempts=3))
    assert [each.status for each in raised.value.outcomes["flaky"].attempts] == [LOST, LOST]


# -- cancels and deadlines -----------------------------------------------------------------------


async def test_a_cancelled_job_is_not_asked_again(job_harness: JobHarness):
    requester = await start(job_harness, flaky := Flaky(1))
    with pytest.raises(JobCancelledError):
        async with requester.job("flaky", name="stuck", retry=at_once(on=lambda _: True)) as j:
            await flaky.begun.get()
            await requester.cancel_job_group(j.job_id)
    await job_harness.settle()
    assert len(flaky.calls) == 1


async def test_a_job_that_is_cancelled_while_it_waits_for_its_next_attempt_ends(
    job_harness: JobHarness,
):
    requester = await start(job_harness, flaky := Flaky(1))
    retry = Retry(on={ERROR}, wait_initial=LONG, wait_max=LONG)
    with pytest.raises(JobCancelledError) as raised:
        async with requester.job("flaky", name="work", retry=retry) as j:
            group: Any = requester.job_groups[j.job_id]
            await until(lambda: group.handles["flaky"].state == "waiting")
            await requester.cancel_job_group(j.job_id, reason="enough")
    outcome = raised.value.outcomes["flaky"]
    assert outcome.cancel_reason is CancelReason.REQUESTER_CANCELLED
    assert [each.status for each in outcome.attempts] == [ERROR]
    await job_harness.settle()
    assert len(flaky.calls) == 1


async def test_a_cancel_reaches_the_attempt_that_runs(job_harness: JobHarness):
    requester = await start(job_harness, flaky := Flaky(2))
    with pytest.raises(JobCancelledError):
        async with requester.job("flaky", name="stuck", retry=at_once()) as j:
            first = await flaky.begun.get()
            await requester.worker_lost("flaky", reason="lost", job_id=first)
            second = await flaky.begun.get()
            await requester.cancel_job_group(j.job_id)
    await until(lambda: sorted(flaky.cancelled) == sorted([first, second]))
    await job_harness.settle()
    # The CANCELLED response to the cancel comes with the job's id, and once.
    assert [(hook, message.job_id) for hook, message in requester.hooks] == [
        ("on_job_response", j.job_id)
    ]


async def test_no_attempt_begins_whose_wait_would_pass_the_deadline(job_harness: JobHarness):
    requester = await start(job_harness, flaky := Flaky(9))
    retry = Retry(on={ERROR}, wait_initial=2 * LONG, wait_max=2 * LONG)
    with pytest.raises(JobError, match="failure 1") as raised:
        await requester.ask("flaky", "work", timeout=LONG, retry=retry)
    assert not isinstance(raised.value, JobTimeoutError)
    assert len(flaky.calls) == 1


async def test_attempts_share_one_deadline(job_harness: JobHarness):
    requester = await start(job_harness, flaky := Flaky(2))
    with pytest.raises(JobTimeoutError) as raised:
        async with requester.job("flaky", name="stuck", timeout=1.0, retry=at_once()):
            first = await flaky.begun.get()
            await requester.worker_lost("flaky", reason="lost", job_id=first)
    outcome = raised.value.outcomes["flaky"]
    assert [each.status for each in outcome.attempts] == [LOST]
    assert outcome.waited + outcome.ran < LONG


# -- messages of earlier attempts ----------------------------------------------------------------


async def test_a_late_response_of_an_earlier_attempt_is_ignored(job_harness: JobHarness):
    requester = await start(job_harness, flaky := Flaky(2))
    async with requester.job("flaky", name="stuck", retry=at_once()) as j:
        first = await flaky.begun.get()
        await requester.worker_lost("flaky", reason="lost", job_id=first)
        second = await flaky.begun.get()
        late = BusJobResponseMessage(
            source="flaky",
            target="requester",
            job_id=first,
            status=JobStatus.COMPLETED,
            response={"call": "late"},
        )
        await requester.on_bus_message(late)
        assert j.outcome is None
        await requester.worker_lost("flaky", reason="lost", job_id=second)
    assert j.response == {"call": 3}


async def test_updates_of_every_attempt_have_the_id_of_the_job(job_harness: JobHarness):
    class Updating(Flaky):
        @job(name="work")
        async def work(self, message: BusJobRequestMessage) -> dict:
            number = self._note(message)
            await self.send_job_update(message.job_id, {"call": number})
            if number <= self.fails:
                raise ValueError("again")
            return {}

    requester = await start(job_harness, Updating(1))
    async with requester.job("flaky", name="work", retry=at_once(on={ERROR})) as j:
        updates = [event.data async for event in j if event.type == JobEvent.UPDATE]
    assert updates == [{"call": 1}, {"call": 2}]
    await job_harness.settle()
    assert {message.job_id for _, message in requester.hooks} == {j.job_id}


async def test_a_stream_that_broke_off_is_only_started_again_if_retry_names_it(
    job_harness: JobHarness,
):
    requester = await start(job_harness, flaky := Flaky(1))
    async with requester.job("flaky", name="stream", retry=at_once(on={ERROR})) as j:
        chunks = [event.data async for event in j if event.type == JobEvent.STREAM_DATA]
    assert chunks == [{"call": 1}, {"call": 2}, {"call": 2, "rest": True}]
    assert len(flaky.calls) == 2


async def test_a_stream_that_was_lost_is_not_started_again(job_harness: JobHarness):
    requester = await start(job_harness, Flaky(0))

    class Streaming(Flaky):
        @job(name="stream")
        async def stream(self, message: BusJobRequestMessage):
            self._note(message)
            yield {}
            await asyncio.Event().wait()

    await job_harness.start(streaming := Streaming(0, "streaming"))
    with pytest.raises(WorkerLostError):
        async with requester.job("streaming", name="stream", retry=at_once()) as j:
            async for event in j:
                if event.type == JobEvent.STREAM_DATA:
                    await requester.worker_lost("streaming", reason="lost")
    assert len(streaming.calls) == 1


# -- groups, interceptors, and the other ways to ask ---------------------------------------------


async def test_each_worker_of_a_group_has_attempts_of_its_own(job_harness: JobHarness):
    requester, a, b = Requester(), Flaky(1, "a"), Flaky(2, "b")
    await job_harness.start(requester, a, b)
    async with requester.job_group("a", "b", name="work", retry=at_once(on={ERROR})) as group:
        pass
    assert {name: len(outcome.attempts) for name, outcome in group.outcomes.items()} == {
        "a": 1,
        "b": 2,
    }


async def test_a_group_that_has_failed_begins_no_further_attempt(job_harness: JobHarness):
    release = asyncio.Event()

    class Fails(Flaky):
        @job(name="stuck")
        async def be_stuck(self, message: BusJobRequestMessage) -> dict:
            await release.wait()
            raise ValueError("failure")

    requester, a, b = Requester(), Fails(0, "a"), Flaky(9, "b")
    await job_harness.start(requester, a, b)
    retry = Retry(on={LOST}, wait_initial=LONG, wait_max=LONG)
    with pytest.raises(JobError, match="failure"):
        async with requester.job_group("b", "a", name="stuck", retry=retry) as group:
            await b.begun.get()
            await requester.worker_lost("b", reason="lost")
            waiting: Any = requester.job_groups[group.job_id]
            assert waiting.handles["b"].state == "waiting"
            release.set()
    await job_harness.settle()
    assert len(b.calls) == 1
    assert group.outcomes["b"].cancel_reason is CancelReason.GROUP_FAILED


async def test_interceptors_see_each_request_and_one_end(job_harness: JobHarness):
    requester = await start(job_harness, Flaky(2))
    events: list[tuple[JobLifeEventKind, str]] = []
    asked: list[str] = []

    class Watch(JobInterceptor):
        async def ask(self, call, proceed) -> None:
            asked.append(call.job_id)
            await proceed(call)

        def on_event(self, event: JobLifeEvent) -> None:
            events.append((event.kind, event.job_id))

    requester.add_job_interceptor(Watch())
    async with requester.job("flaky", name="work", retry=at_once(on={ERROR})) as j:
        pass
    kind = JobLifeEventKind
    assert events == [
        (each, j.job_id) for each in (kind.ASKED, kind.SENT, kind.SENT, kind.SENT, kind.SETTLED)
    ]
    assert asked == [j.job_id]


async def test_request_job_is_asked_again_too(job_harness: JobHarness):
    requester = await start(job_harness, Flaky(1))
    job_id = await requester.request_job("flaky", name="work", retry=at_once(on={ERROR}))
    await until(lambda: job_id not in requester.job_groups)
    await until(lambda: requester.fired() == ["on_job_response", "on_job_completed"])
    assert requester.hooks[0][1].response["call"] == 2


async def test_nothing_is_left_after_several_attempts(job_harness: JobHarness):
    requester = await start(job_harness, flaky := Flaky(2))
    async with requester.job("flaky", name="stuck", timeout=LONG, retry=at_once()):
        for _ in range(2):
            current = await flaky.begun.get()
            await requester.worker_lost("flaky", reason="lost", job_id=current)
    await job_harness.settle()
    assert job_harness.left_behind() == []
    assert not requester._WorkerJobs__requester._later_attempts
    assert not requester._WorkerJobs__requester._liveness._watches
    assert not flaky.active_jobs


async def decide_later(outcome: JobOutcome) -> bool:
    return False


# -- what Retry takes ----------------------------------------------------------------------------


@pytest.mark.not_on("routed", "redis", "pubsub", reason="no bus is used")
@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"attempts": 0}, InvalidJobError),
        ({"attempts": "3"}, InvalidJobTypeError),
        ({"on": OutcomeStatus.ERROR}, InvalidJobTypeError),
        ({"on": {"error"}}, InvalidJobTypeError),
        ({"on": 5}, InvalidJobTypeError),
        ({"on": ValueError}, InvalidJobTypeError),
        ({"on": OutcomeStatus}, InvalidJobTypeError),
        ({"on": decide_later}, InvalidJobTypeError),
        ({"on": {OutcomeStatus.CANCELLED}}, InvalidJobError),
        ({"on": {OutcomeStatus.TIMED_OUT}}, InvalidJobError),
        ({"on": {OutcomeStatus.COMPLETED}}, InvalidJobError),
        ({"wait_initial": -1}, InvalidJobError),
        ({"wait_initial": math.nan}, InvalidJobError),
        ({"wait_max": "5"}, InvalidJobTypeError),
        ({"wait_initial": 9, "wait_max": 8}, InvalidJobError),
    ],
)
async def test_retry_refuses_what_cannot_be_used(fields: dict[str, Any], error: type[Exception]):
    [name, *_] = fields
    with pytest.raises(error, match=f"Retry.{'wait_max' if len(fields) > 1 else name}"):
        Retry(**fields)


@pytest.mark.not_on("routed", "redis", "pubsub", reason="no bus is used")
async def test_a_job_refuses_a_retry_that_is_not_one():
    with pytest.raises(InvalidJobTypeError, match="retry is 3"):
        BaseWorker("w").job("other", retry=3)  # type: ignore[arg-type]


@pytest.mark.not_on("routed", "redis", "pubsub", reason="no bus is used")
async def test_waits_grow_to_the_longest_wait():
    retry = Retry(wait_initial=1.0, wait_max=5.0)
    for made, shortest in ((1, 1.0), (2, 2.0), (3, 4.0), (4, 5.0), (5000, 5.0)):
        assert shortest <= compute_wait(retry, made) <= min(shortest + 1.0, 5.0)
    assert compute_wait(at_once(), 3) == 0
