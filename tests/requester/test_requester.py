"""The requester: the results of its calls and contexts, and the state that it keeps."""

import asyncio

import pytest
from pipecat.bus.messages import BusJobRequestMessage, BusJobResponseMessage, BusJobUpdateMessage
from pipecat.pipeline.job_context import JobGroupParams as PipecatJobGroupParams
from pipecat.pipeline.job_context import JobParams as PipecatJobParams
from pipecat.pipeline.job_context import JobStatus
from support.workers import Requester, Responder

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
    requester = Requester()
    await job_harness.start(requester, Responder())

    context = requester.job("responder", name="echo", payload={"n": 1}, timeout=5)
    assert context.outcome is None
    async with context as j:
        assert j.job_id == context.job_id

    assert j.response == {"from": "responder", "payload": {"n": 1}}
    assert j.outcome is not None
    assert j.outcome.status is OutcomeStatus.COMPLETED
    assert j.outcome.status == JobStatus.COMPLETED
    assert (j.outcome.worker, j.outcome.response) == ("responder", j.response)
    assert j.outcome.waited >= 0
    assert j.outcome.ran > 0


async def test_reading_a_response_before_the_end_is_an_error_that_says_where_to_read_it(
    job_harness: JobHarness,
):
    requester, responder = Requester(), Responder()
    await job_harness.start(requester, responder)

    context = requester.job("responder", name="wait")
    with pytest.raises(JobNotEndedError, match="has not ended"):
        _ = context.response
    async with context as j:
        with pytest.raises(JobNotEndedError, match="after the 'async with' block") as raised:
            _ = j.response
        assert j.outcome is None
        responder.release.set()
    assert j.response == {"from": "responder"}
    assert (raised.value.job_id, raised.value.worker) == (j.job_id, "responder")


async def test_a_response_may_be_read_in_the_block_once_the_events_have_ended(
    job_harness: JobHarness,
):
    requester = Requester()
    await job_harness.start(requester, Responder())
    async with requester.job("responder", name="echo") as j:
        async for _ in j:
            pass
        assert j.response["from"] == "responder"


async def test_the_response_of_a_job_that_failed_may_be_read(job_harness: JobHarness):
    requester, responder = Requester(), Responder()
    await job_harness.start(requester, responder)

    failing = requester.job("responder", name="raise")
    with pytest.raises(JobError):
        async with failing:
            pass
    assert failing.response["error"] == "no such topic"

    cancelled = requester.job("responder", name="wait")
    with pytest.raises(JobCancelledError):
        async with cancelled:
            await requester.cancel_job_group(cancelled.job_id)
    assert cancelled.response == {}


async def test_the_responses_of_a_group_may_be_read_at_any_time(job_harness: JobHarness):
    requester, a, b = Requester(), Responder("a"), Responder("b")
    await job_harness.start(requester, a, b)
    async with requester.job_group("a", "b", name="wait") as group:
        assert group.responses == {}
        responded = asyncio.Event()

        @requester.event_handler("on_job_response")
        async def on_job_response(_: BaseWorker, message: BusJobResponseMessage) -> None:
            responded.set()

        a.release.set()
        await responded.wait()
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
    requester = Requester()
    await job_harness.start(requester, Responder())
    async with requester.job("responder", params=params) as j:
        pass
    assert j.response["payload"] == {"n": 1}


async def test_group_gives_responses_and_outcomes_by_worker(job_harness: JobHarness):
    requester = Requester()
    await job_harness.start(requester, Responder("a"), Responder("b"))
    async with requester.job_group("a", "b", params=PipecatJobGroupParams(name="echo")) as group:
        pass
    assert {name: r["from"] for name, r in group.responses.items()} == {"a": "a", "b": "b"}
    assert all(outcome.completed for outcome in group.outcomes.values())


async def test_the_requester_can_choose_the_job_id_and_the_label(job_harness: JobHarness):
    requester, responder = Requester(), Responder()
    await job_harness.start(requester, responder)
    async with requester.job("responder", name="wait", job_id="mine", label="Research") as j:
        assert await responder.started.get() == j.job_id == "mine"
        assert requester.job_groups["mine"].label == "Research"
        with pytest.raises(InvalidJobError, match="'mine' is in use"):
            await requester.request_job("responder", job_id="mine")
        with pytest.raises(InvalidJobError, match="'mine' is in use"):
            async with requester.job("responder", job_id="mine"):
                pass
        responder.release.set()
    with pytest.raises(InvalidJobError, match="'mine' was used before"):
        await requester.ask("responder", "echo", job_id="mine")
    assert await requester.request_job("responder", name="echo", job_id="another") == "another"


async def test_responses_to_fire_and_forget_jobs_reach_the_hooks(job_harness: JobHarness):
    requester = Requester()
    await job_harness.start(requester, Responder("a"), Responder("b"))
    job_id = await requester.request_job_group("a", "b", name="echo")
    await job_harness.settle()
    assert requester.fired() == ["on_job_response", "on_job_response", "on_job_completed"]
    completed = requester.hooks[-1][1]
    assert completed.job_id == job_id
    assert set(completed.responses) == {"a", "b"}


async def test_several_tasks_can_wait_for_a_group(job_harness: JobHarness):
    requester, responder = Requester(), Responder()
    await job_harness.start(requester, responder)
    group = await requester.create_job_group_and_request_job(["responder"], name="wait")
    waiters = [asyncio.create_task(group.wait()) for _ in range(2)]
    await requester.cancel_job_group(group.job_id, reason="enough")
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

    requester = Requester()
    await job_harness.start(requester, Streaming("streaming"))

    async with requester.job("streaming", name="stream") as j:
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
    assert requester.fired() == [
        "on_job_update",
        "on_job_stream_start",
        "on_job_stream_data",
        "on_job_stream_data",
        "on_job_stream_end",
        "on_job_completed",
    ]


async def test_group_events_name_their_worker(job_harness: JobHarness):
    requester = Requester()
    await job_harness.start(requester, Responder("a"), Responder("b"))
    async with requester.job_group("a", "b", name="count", payload={"to": 2}) as group:
        events = [event async for event in group if event.type == JobGroupEvent.STREAM_DATA]
    by_worker = {name: [e.data for e in events if e.worker_name == name] for name in ("a", "b")}
    assert by_worker == {name: [{"number": 0}, {"number": 1}] for name in ("a", "b")}


async def test_async_for_ends_when_the_job_fails_and_exit_raises(job_harness: JobHarness):
    requester = Requester()
    await job_harness.start(requester, Responder())
    with pytest.raises(JobError, match="no such topic"):
        async with requester.job("responder", name="raise") as j:
            assert [event async for event in j] == []


async def test_first_error_cancels_the_others_and_raises_with_all_outcomes(
    job_harness: JobHarness,
):
    requester, waiting = Requester(), Responder("waiting")

    class Failing(Responder):
        @job(name="wait")
        async def wait_for_release(self, message: BusJobRequestMessage) -> dict:
            await waiting.started.get()
            raise ValueError("no such topic")

    await job_harness.start(requester, waiting, Failing("failing"))
    with pytest.raises(JobGroupError, match=r"'failing'.*no such topic") as caught:
        async with requester.job_group("waiting", "failing", name="wait"):
            pass
    await job_harness.settle()

    outcomes = caught.value.outcomes
    assert outcomes["failing"].status is OutcomeStatus.ERROR
    assert outcomes["waiting"].status is OutcomeStatus.CANCELLED
    assert outcomes["waiting"].reason == "worker 'failing' errored"
    assert set(caught.value.failures) == {"waiting", "failing"}
    assert len(waiting.cancelled) == 1
    assert requester.fired().count("on_job_error") == 1
    assert "on_job_completed" not in requester.fired()


async def test_job_error_names_job_and_worker_for_code(job_harness: JobHarness):
    requester = Requester()
    await job_harness.start(requester, Responder())
    with pytest.raises(JobError) as caught:
        await requester.ask("responder", "raise", job_id="j1")
    assert (caught.value.job_id, caught.value.job_name) == ("j1", "raise")
    assert not isinstance(caught.value, JobGroupError)


async def test_a_second_response_and_a_response_after_the_end_are_ignored(
    chaos_harness: JobHarness, chaos_bus: ChaosBus
):
    requester = Requester()
    await chaos_harness.start(requester, Responder())
    chaos_bus.duplicate(BusJobResponseMessage, times=3)
    assert (await requester.ask("responder", "echo"))["from"] == "responder"
    await chaos_harness.settle()
    assert requester.fired() == ["on_job_response", "on_job_completed"]


async def test_a_second_response_while_others_still_work_is_ignored(
    chaos_harness: JobHarness, chaos_bus: ChaosBus
):
    requester, slow = Requester(), Responder("slow")
    quick = Responder("quick")
    quick.release.set()
    await chaos_harness.start(requester, quick, slow)
    async with requester.job_group("quick", "slow", name="wait") as group:
        first = await chaos_bus.wait_for(BusJobResponseMessage)
        await chaos_harness.settle()
        first.response = {"from": "an echo"}
        await chaos_bus.send(first)
        await chaos_harness.settle()
        slow.release.set()
    assert group.responses["quick"] == {"from": "quick"}
    assert requester.fired().count("on_job_response") == 2


async def test_a_response_after_the_deadline_is_ignored(chaos_harness, chaos_bus):
    requester = Requester()
    await chaos_harness.start(requester, Responder())
    held = chaos_bus.hold(BusJobResponseMessage)
    with pytest.raises(TimeoutError):
        await requester.ask("responder", "echo", timeout=0.01)
    held.release()
    await chaos_harness.settle()
    assert requester.fired() == []


async def test_a_cancelled_response_to_a_cancel_still_reaches_the_hook_once(
    job_harness: JobHarness,
):
    """Pipecat promises it: on_job_response with status "cancelled"."""
    requester, responder = Requester(), Responder()
    await job_harness.start(requester, responder)
    job_id = await requester.request_job("responder", name="wait")
    await responder.started.get()
    await requester.cancel_job_group(job_id, reason="enough")
    await job_harness.settle()
    assert [(event, m.status) for event, m in requester.hooks] == [
        ("on_job_response", JobStatus.CANCELLED)
    ]


async def test_request_cancel_respects_cancellable(job_harness: JobHarness):
    requester, responder = Requester(), Responder()
    await job_harness.start(requester, responder)
    async with requester.job("responder", name="wait", cancellable=False) as j:
        await responder.started.get()
        assert not await requester.request_cancel_job_group(j.job_id)
        responder.release.set()
    with pytest.raises(JobCancelledError, match="by the user"):
        async with requester.job("responder", name="silent") as j:
            assert await requester.request_cancel_job_group(j.job_id, reason="by the user")
    assert not await requester.request_cancel_job_group("unknown")


async def test_request_job_update_reaches_the_worker_and_its_update_returns(
    job_harness: JobHarness,
):
    class Reporting(Responder):
        async def on_job_update_requested(self, message) -> None:
            await self.send_job_update(message.job_id, {"progress": 40}, urgent=True)

    requester, responder = Requester(), Reporting()
    await job_harness.start(requester, responder)
    async with requester.job("responder", name="wait") as j:
        await responder.started.get()
        await requester.request_job_update(j.job_id, "responder")
        async for event in j:
            assert event.data == {"progress": 40}
            break
        responder.release.set()
    with pytest.raises(UnknownJobError, match="not known"):
        await requester.request_job_update(j.job_id, "responder")


async def test_a_worker_can_request_a_job_from_itself(job_harness: JobHarness):
    responder = Responder()
    await job_harness.start(responder)
    async with responder.job("responder", name="echo") as j:
        pass
    assert j.response["from"] == "responder"


async def test_hooks_of_a_job_wait_until_the_call_has_returned_its_id(
    chaos_harness: JobHarness, chaos_bus: ChaosBus
):
    requester = Requester()
    await chaos_harness.start(requester, Responder("a"), Responder("b"))
    blocked = chaos_bus.block_publish(
        lambda m: isinstance(m, BusJobRequestMessage) and m.target == "b"
    )
    call = asyncio.create_task(requester.request_job_group("a", "b", name="echo"))
    await blocked.wait()
    await chaos_bus.wait_for(BusJobResponseMessage)
    await chaos_harness.settle()
    assert requester.fired() == []
    blocked.release()
    await call
    await chaos_harness.settle()
    assert requester.fired() == ["on_job_response", "on_job_response", "on_job_completed"]


async def test_after_a_failure_while_requests_are_sent_the_remaining_workers_are_not_asked(
    chaos_harness: JobHarness, chaos_bus: ChaosBus
):
    requester, last = Requester(), Responder("last")
    await chaos_harness.start(requester, Responder("failing"), Responder("middle"), last)
    blocked = chaos_bus.block_publish(
        lambda m: isinstance(m, BusJobRequestMessage) and m.target == "middle"
    )

    async def call() -> None:
        async with requester.job_group("failing", "middle", "last", name="raise"):
            pass

    call_task = asyncio.create_task(call())
    await blocked.wait()
    await chaos_bus.wait_for(BusJobResponseMessage)
    await chaos_harness.settle()
    blocked.release()
    with pytest.raises(JobGroupError) as caught:
        await call_task
    assert caught.value.outcomes["last"].status is OutcomeStatus.CANCELLED
    targets = [m.target for m in chaos_bus.sent if isinstance(m, BusJobRequestMessage)]
    assert targets == ["failing", "middle"]


async def test_a_slow_hook_does_not_delay_iteration_over_events(job_harness: JobHarness):
    class Slow(Requester):
        gate = asyncio.Event()

        async def on_job_update(self, message) -> None:
            await self.gate.wait()

    requester, responder = Slow(), Responder()
    await job_harness.start(requester, responder)
    async with requester.job("responder", name="wait") as j:
        job_id = await responder.started.get()
        await responder.send_job_update(job_id, {"n": 1})
        async for event in j:
            assert event.data == {"n": 1}
            break
        requester.gate.set()
        responder.release.set()


async def test_a_fire_and_forget_job_does_not_keep_updates_that_are_not_iterated(
    job_harness: JobHarness,
):
    requester, responder = Requester(), Responder()
    await job_harness.start(requester, responder)
    group = await requester.create_job_group_and_request_job(["responder"], name="wait")
    await responder.started.get()
    await responder.send_job_update(group.job_id, {"n": 1})
    await job_harness.settle()
    group.event_queue = asyncio.Queue()
    await responder.send_job_update(group.job_id, {"n": 2})
    responder.release.set()
    await group.wait()
    event = group.event_queue.get_nowait()
    assert (event.data, group.event_queue.get_nowait()) == ({"n": 2}, None)


async def test_a_context_is_entered_once(job_harness: JobHarness):
    requester = Requester()
    await job_harness.start(requester, Responder())
    context = requester.job("responder", name="echo")
    async with context:
        pass
    with pytest.raises(InvalidJobError, match="entered or awaited once"):
        async with context:
            pass


async def test_updates_are_sent_as_pipecats_own_messages(chaos_harness, chaos_bus):
    class Reporting(BaseWorker):
        async def on_job_request(self, message) -> None:
            await self.send_job_update(message.job_id, {"n": 1})
            await self.send_job_response(message.job_id)

    requester = Requester()
    await chaos_harness.start(requester, Reporting("reporting"))
    await requester.ask("reporting")
    kinds = [type(m) for m in chaos_bus.sent if getattr(m, "job_id", None)]
    assert kinds == [BusJobRequestMessage, BusJobUpdateMessage, BusJobResponseMessage]


async def test_group_error_carries_the_outcome_of_every_worker(job_harness: JobHarness):
    requester, slow = Requester(), Responder("slow")
    await job_harness.start(requester, slow, Responder("other"))

    with pytest.raises(JobGroupError) as caught:
        async with requester.job_group("other", "slow", name="wait"):
            await slow.started.get()
            await job_harness.end(slow)

    assert set(caught.value.outcomes) == {"other", "slow"}
    assert caught.value.outcomes["slow"].reason == "worker 'slow' stopped"
    assert caught.value.outcomes["other"].reason == "worker 'slow' cancelled"
