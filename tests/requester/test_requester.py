"""The requester: the results of its calls and contexts, and the state that it keeps."""

import asyncio

import pytest
from pipecat.bus.messages import BusJobRequestMessage, BusJobResponseMessage, BusJobUpdateMessage
from pipecat.pipeline.job_context import JobGroupParams as PipecatJobGroupParams
from pipecat.pipeline.job_context import JobParams as PipecatJobParams
from pipecat.pipeline.job_context import JobStatus
from support.workers import Answerer, Asker

from pipecat_jobs import (
    BaseWorker,
    InvalidJobError,
    JobCancelledError,
    JobError,
    JobEvent,
    JobGroupError,
    JobGroupEvent,
    JobGroupParams,
    JobNotEndedError,
    JobParams,
    OutcomeStatus,
    UnknownJobError,
    job,
)
from pipecat_jobs.testing import ChaosBus, JobHarness

pytestmark = pytest.mark.every_bus


async def test_job_gives_response_outcome_and_id(job_harness: JobHarness):
    asker = Asker()
    await job_harness.start(asker, Answerer())

    context = asker.job("answerer", name="echo", payload={"n": 1}, timeout=5)
    assert context.outcome is None
    async with context as j:
        assert j.job_id == context.job_id

    assert j.response == {"from": "answerer", "payload": {"n": 1}}
    assert j.outcome is not None
    assert j.outcome.status is OutcomeStatus.COMPLETED
    assert j.outcome.status == JobStatus.COMPLETED
    assert (j.outcome.worker, j.outcome.response) == ("answerer", j.response)
    assert j.outcome.waited >= 0
    assert j.outcome.ran > 0


async def test_reading_a_response_before_the_end_is_an_error_that_says_where_to_read_it(
    job_harness: JobHarness,
):
    asker, answerer = Asker(), Answerer()
    await job_harness.start(asker, answerer)

    context = asker.job("answerer", name="wait")
    with pytest.raises(JobNotEndedError, match="has not ended"):
        _ = context.response
    async with context as j:
        with pytest.raises(JobNotEndedError, match="after the 'async with' block") as raised:
            _ = j.response
        assert j.outcome is None
        answerer.release.set()
    assert j.response == {"from": "answerer"}
    assert (raised.value.job_id, raised.value.worker) == (j.job_id, "answerer")


async def test_a_response_may_be_read_in_the_block_once_the_events_have_ended(
    job_harness: JobHarness,
):
    asker = Asker()
    await job_harness.start(asker, Answerer())
    async with asker.job("answerer", name="echo") as j:
        async for _ in j:
            pass
        assert j.response["from"] == "answerer"


async def test_the_response_of_a_job_that_failed_may_be_read(job_harness: JobHarness):
    asker, answerer = Asker(), Answerer()
    await job_harness.start(asker, answerer)

    failing = asker.job("answerer", name="raise")
    with pytest.raises(JobError):
        async with failing:
            pass
    assert failing.response["error"] == "no such topic"

    cancelled = asker.job("answerer", name="wait")
    with pytest.raises(JobCancelledError):
        async with cancelled:
            await asker.cancel_job_group(cancelled.job_id)
    assert cancelled.response == {}


async def test_the_responses_of_a_group_may_be_read_at_any_time(job_harness: JobHarness):
    asker, a, b = Asker(), Answerer("a"), Answerer("b")
    await job_harness.start(asker, a, b)
    async with asker.job_group("a", "b", name="wait") as group:
        assert group.responses == {}
        answered = asyncio.Event()

        @asker.event_handler("on_job_response")
        async def on_job_response(_: BaseWorker, message: BusJobResponseMessage) -> None:
            answered.set()

        a.release.set()
        await answered.wait()
        assert group.responses == {"a": {"from": "a"}}
        b.release.set()
    assert set(group.responses) == {"a", "b"}


@pytest.mark.parametrize(
    "params",
    [
        JobParams(name="echo", payload={"n": 1}, timeout=5, label="Say it"),
        PipecatJobParams(name="echo", payload={"n": 1}, timeout=5),
        JobGroupParams(name="echo", payload={"n": 1}),
    ],
)
async def test_a_params_object_has_the_same_effect_as_keywords(job_harness: JobHarness, params):
    asker = Asker()
    await job_harness.start(asker, Answerer())
    async with asker.job("answerer", params=params) as j:
        pass
    assert j.response["payload"] == {"n": 1}


async def test_group_gives_responses_and_outcomes_by_worker(job_harness: JobHarness):
    asker = Asker()
    await job_harness.start(asker, Answerer("a"), Answerer("b"))
    async with asker.job_group("a", "b", params=PipecatJobGroupParams(name="echo")) as group:
        pass
    assert {name: r["from"] for name, r in group.responses.items()} == {"a": "a", "b": "b"}
    assert all(outcome.completed for outcome in group.outcomes.values())


async def test_the_requester_can_choose_the_job_id_and_the_label(job_harness: JobHarness):
    asker, answerer = Asker(), Answerer()
    await job_harness.start(asker, answerer)
    async with asker.job("answerer", name="wait", job_id="mine", label="Research") as j:
        assert await answerer.started.get() == j.job_id == "mine"
        assert asker.job_groups["mine"].label == "Research"
        with pytest.raises(InvalidJobError, match="'mine' is in use"):
            await asker.request_job("answerer", job_id="mine")
        with pytest.raises(InvalidJobError, match="'mine' is in use"):
            async with asker.job("answerer", job_id="mine"):
                pass
        answerer.release.set()
    with pytest.raises(InvalidJobError, match="'mine' was used before"):
        await asker.ask("answerer", "echo", job_id="mine")
    assert await asker.request_job("answerer", name="echo", job_id="another") == "another"


async def test_responses_to_fire_and_forget_jobs_reach_the_hooks(job_harness: JobHarness):
    asker = Asker()
    await job_harness.start(asker, Answerer("a"), Answerer("b"))
    job_id = await asker.request_job_group("a", "b", name="echo")
    await job_harness.settle()
    assert asker.fired() == ["on_job_response", "on_job_response", "on_job_completed"]
    completed = asker.hooks[-1][1]
    assert completed.job_id == job_id
    assert set(completed.responses) == {"a", "b"}


async def test_several_tasks_can_wait_for_a_group(job_harness: JobHarness):
    asker, answerer = Asker(), Answerer()
    await job_harness.start(asker, answerer)
    group = await asker.create_job_group_and_request_job(["answerer"], name="wait")
    waiters = [asyncio.create_task(group.wait()) for _ in range(2)]
    await asker.cancel_job_group(group.job_id, reason="enough")
    for waiter in waiters:
        with pytest.raises(JobCancelledError, match="enough"):
            await waiter


async def test_async_for_gives_updates_and_stream_events_in_order(job_harness: JobHarness):
    class Streaming(BaseWorker):
        @job(name="stream")
        async def stream(self, message: BusJobRequestMessage) -> None:
            await self.send_job_update(message.job_id, {"progress": 0})
            await self.send_job_stream_start(message.job_id, {"type": "text"})
            await self.send_job_stream_data(message.job_id, {"text": "a"})
            await self.send_job_stream_data(message.job_id, {"text": "b"})
            await self.send_job_stream_end(message.job_id, {"text": "ab"})

    asker = Asker()
    await job_harness.start(asker, Streaming("streaming"))

    async with asker.job("streaming", name="stream") as j:
        events = [(type(event), event.type, event.data) async for event in j]
        assert [event async for event in j] == [], "a second loop ends as well"

    assert events == [
        (JobEvent, JobEvent.UPDATE, {"progress": 0}),
        (JobEvent, JobEvent.STREAM_START, {"type": "text"}),
        (JobEvent, JobEvent.STREAM_DATA, {"text": "a"}),
        (JobEvent, JobEvent.STREAM_DATA, {"text": "b"}),
        (JobEvent, JobEvent.STREAM_END, {"text": "ab"}),
    ]
    assert j.response == {"text": "ab"}
    await job_harness.settle()
    assert asker.fired() == [
        "on_job_update",
        "on_job_stream_start",
        "on_job_stream_data",
        "on_job_stream_data",
        "on_job_stream_end",
        "on_job_completed",
    ]


async def test_group_events_name_their_worker(job_harness: JobHarness):
    asker = Asker()
    await job_harness.start(asker, Answerer("a"), Answerer("b"))
    async with asker.job_group("a", "b", name="count", payload={"to": 2}) as group:
        events = [event async for event in group if event.type == JobGroupEvent.STREAM_DATA]
    by_worker = {name: [e.data for e in events if e.worker_name == name] for name in ("a", "b")}
    assert by_worker == {name: [{"number": 0}, {"number": 1}] for name in ("a", "b")}


async def test_async_for_ends_when_the_job_fails_and_exit_raises(job_harness: JobHarness):
    asker = Asker()
    await job_harness.start(asker, Answerer())
    with pytest.raises(JobError, match="no such topic"):
        async with asker.job("answerer", name="raise") as j:
            assert [event async for event in j] == []


async def test_first_error_cancels_the_others_and_raises_with_all_outcomes(
    job_harness: JobHarness,
):
    asker, waiting = Asker(), Answerer("waiting")

    class Failing(Answerer):
        @job(name="wait")
        async def wait_for_release(self, message: BusJobRequestMessage) -> dict:
            await waiting.started.get()
            raise ValueError("no such topic")

    await job_harness.start(asker, waiting, Failing("failing"))
    with pytest.raises(JobGroupError, match=r"'failing'.*no such topic") as caught:
        async with asker.job_group("waiting", "failing", name="wait"):
            pass
    await job_harness.settle()

    outcomes = caught.value.outcomes
    assert outcomes["failing"].status is OutcomeStatus.ERROR
    assert outcomes["waiting"].status is OutcomeStatus.CANCELLED
    assert outcomes["waiting"].reason == "worker 'failing' errored"
    assert set(caught.value.failures) == {"waiting", "failing"}
    assert len(waiting.cancelled) == 1
    assert asker.fired().count("on_job_error") == 1
    assert "on_job_completed" not in asker.fired()


async def test_job_error_names_job_and_worker_for_code(job_harness: JobHarness):
    asker = Asker()
    await job_harness.start(asker, Answerer())
    with pytest.raises(JobError) as caught:
        await asker.ask("answerer", "raise", job_id="j1")
    assert (caught.value.job_id, caught.value.job_name) == ("j1", "raise")
    assert not isinstance(caught.value, JobGroupError)


async def test_a_second_response_and_a_response_after_the_end_are_ignored(
    chaos_harness: JobHarness, chaos_bus: ChaosBus
):
    asker = Asker()
    await chaos_harness.start(asker, Answerer())
    chaos_bus.duplicate(BusJobResponseMessage, times=3)
    assert (await asker.ask("answerer", "echo"))["from"] == "answerer"
    await chaos_harness.settle()
    assert asker.fired() == ["on_job_response", "on_job_completed"]


async def test_a_second_response_while_others_still_work_is_ignored(
    chaos_harness: JobHarness, chaos_bus: ChaosBus
):
    asker, slow = Asker(), Answerer("slow")
    quick = Answerer("quick")
    quick.release.set()
    await chaos_harness.start(asker, quick, slow)
    async with asker.job_group("quick", "slow", name="wait") as group:
        first = await chaos_bus.wait_for(BusJobResponseMessage)
        await chaos_harness.settle()
        first.response = {"from": "an echo"}
        await chaos_bus.send(first)
        await chaos_harness.settle()
        slow.release.set()
    assert group.responses["quick"] == {"from": "quick"}
    assert asker.fired().count("on_job_response") == 2


async def test_a_response_after_the_deadline_is_ignored(chaos_harness, chaos_bus):
    asker = Asker()
    await chaos_harness.start(asker, Answerer())
    held = chaos_bus.hold(BusJobResponseMessage)
    with pytest.raises(TimeoutError):
        await asker.ask("answerer", "echo", timeout=0.01)
    held.release()
    await chaos_harness.settle()
    assert asker.fired() == []


async def test_a_cancelled_response_to_a_cancel_still_reaches_the_hook_once(
    job_harness: JobHarness,
):
    """Pipecat promises it: on_job_response with status "cancelled"."""
    asker, answerer = Asker(), Answerer()
    await job_harness.start(asker, answerer)
    job_id = await asker.request_job("answerer", name="wait")
    await answerer.started.get()
    await asker.cancel_job_group(job_id, reason="enough")
    await job_harness.settle()
    assert [(event, m.status) for event, m in asker.hooks] == [
        ("on_job_response", JobStatus.CANCELLED)
    ]


async def test_request_cancel_respects_cancellable(job_harness: JobHarness):
    asker, answerer = Asker(), Answerer()
    await job_harness.start(asker, answerer)
    async with asker.job("answerer", name="wait", cancellable=False) as j:
        await answerer.started.get()
        assert not await asker.request_cancel_job_group(j.job_id)
        answerer.release.set()
    with pytest.raises(JobCancelledError, match="by the user"):
        async with asker.job("answerer", name="silent") as j:
            assert await asker.request_cancel_job_group(j.job_id, reason="by the user")
    assert not await asker.request_cancel_job_group("unknown")


async def test_request_job_update_reaches_the_worker_and_its_update_returns(
    job_harness: JobHarness,
):
    class Reporting(Answerer):
        async def on_job_update_requested(self, message) -> None:
            await self.send_job_update(message.job_id, {"progress": 40}, urgent=True)

    asker, answerer = Asker(), Reporting()
    await job_harness.start(asker, answerer)
    async with asker.job("answerer", name="wait") as j:
        await answerer.started.get()
        await asker.request_job_update(j.job_id, "answerer")
        async for event in j:
            assert event.data == {"progress": 40}
            break
        answerer.release.set()
    with pytest.raises(UnknownJobError, match="not known"):
        await asker.request_job_update(j.job_id, "answerer")


async def test_a_worker_can_request_a_job_from_itself(job_harness: JobHarness):
    answerer = Answerer()
    await job_harness.start(answerer)
    async with answerer.job("answerer", name="echo") as j:
        pass
    assert j.response["from"] == "answerer"


async def test_hooks_of_a_job_wait_until_the_call_has_returned_its_id(
    chaos_harness: JobHarness, chaos_bus: ChaosBus
):
    asker = Asker()
    await chaos_harness.start(asker, Answerer("a"), Answerer("b"))
    blocked = chaos_bus.block_publish(
        lambda m: isinstance(m, BusJobRequestMessage) and m.target == "b"
    )
    call = asyncio.create_task(asker.request_job_group("a", "b", name="echo"))
    await blocked.wait()
    await chaos_bus.wait_for(BusJobResponseMessage)
    await chaos_harness.settle()
    assert asker.fired() == []
    blocked.release()
    await call
    await chaos_harness.settle()
    assert asker.fired() == ["on_job_response", "on_job_response", "on_job_completed"]


async def test_after_a_failure_while_requests_are_sent_the_remaining_workers_are_not_asked(
    chaos_harness: JobHarness, chaos_bus: ChaosBus
):
    asker, last = Asker(), Answerer("last")
    await chaos_harness.start(asker, Answerer("failing"), Answerer("middle"), last)
    blocked = chaos_bus.block_publish(
        lambda m: isinstance(m, BusJobRequestMessage) and m.target == "middle"
    )

    async def call() -> None:
        async with asker.job_group("failing", "middle", "last", name="raise"):
            pass

    caller = asyncio.create_task(call())
    await blocked.wait()
    await chaos_bus.wait_for(BusJobResponseMessage)
    await chaos_harness.settle()
    blocked.release()
    with pytest.raises(JobGroupError) as caught:
        await caller
    assert caught.value.outcomes["last"].status is OutcomeStatus.CANCELLED
    targets = [m.target for m in chaos_bus.sent if isinstance(m, BusJobRequestMessage)]
    assert targets == ["failing", "middle"]


async def test_a_slow_hook_does_not_delay_iteration_over_events(job_harness: JobHarness):
    class Slow(Asker):
        gate = asyncio.Event()

        async def on_job_update(self, message) -> None:
            await self.gate.wait()

    asker, answerer = Slow(), Answerer()
    await job_harness.start(asker, answerer)
    async with asker.job("answerer", name="wait") as j:
        job_id = await answerer.started.get()
        await answerer.send_job_update(job_id, {"n": 1})
        async for event in j:
            assert event.data == {"n": 1}
            break
        asker.gate.set()
        answerer.release.set()


async def test_a_fire_and_forget_job_does_not_keep_updates_that_are_not_iterated(
    job_harness: JobHarness,
):
    asker, answerer = Asker(), Answerer()
    await job_harness.start(asker, answerer)
    group = await asker.create_job_group_and_request_job(["answerer"], name="wait")
    await answerer.started.get()
    await answerer.send_job_update(group.job_id, {"n": 1})
    await job_harness.settle()
    group.event_queue = asyncio.Queue()
    await answerer.send_job_update(group.job_id, {"n": 2})
    answerer.release.set()
    await group.wait()
    event = group.event_queue.get_nowait()
    assert (event.data, group.event_queue.get_nowait()) == ({"n": 2}, None)


async def test_a_context_is_entered_once(job_harness: JobHarness):
    asker = Asker()
    await job_harness.start(asker, Answerer())
    context = asker.job("answerer", name="echo")
    async with context:
        pass
    with pytest.raises(InvalidJobError, match="entered once"):
        async with context:
            pass


async def test_updates_are_sent_as_pipecats_own_messages(chaos_harness, chaos_bus):
    class Reporting(BaseWorker):
        async def on_job_request(self, message) -> None:
            await self.send_job_update(message.job_id, {"n": 1})
            await self.send_job_response(message.job_id)

    asker = Asker()
    await chaos_harness.start(asker, Reporting("reporting"))
    await asker.ask("reporting")
    kinds = [type(m) for m in chaos_bus.sent if getattr(m, "job_id", None)]
    assert kinds == [BusJobRequestMessage, BusJobUpdateMessage, BusJobResponseMessage]


async def test_group_error_carries_the_outcome_of_every_worker(job_harness: JobHarness):
    asker, slow = Asker(), Answerer("slow")
    await job_harness.start(asker, slow, Answerer("other"))

    with pytest.raises(JobGroupError) as caught:
        async with asker.job_group("other", "slow", name="wait"):
            await slow.started.get()
            await job_harness.end(slow)

    assert set(caught.value.outcomes) == {"other", "slow"}
    assert caught.value.outcomes["slow"].reason == "worker 'slow' stopped"
    assert caught.value.outcomes["other"].reason == "worker 'slow' cancelled"
