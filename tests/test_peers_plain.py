"""Plain Pipecat workers ask ours and are asked by ours, on one bus."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from peers import OurPeer, PlainPeer, cancel
from pipecat.bus import AsyncQueueBus
from pipecat.bus.messages import (
    BusJobCancelMessage,
    BusJobRequestMessage,
    BusJobResponseMessage,
    BusJobUpdateMessage,
)
from pipecat.pipeline.job_context import JobError as PipecatJobError
from pipecat.pipeline.job_context import JobGroupError as PipecatJobGroupError
from pipecat.pipeline.job_context import JobGroupParams, JobParams
from pipecat.pipeline.job_context import JobStatus as PipecatJobStatus
from pipecat.registry.types import WorkerReadyData
from support import Answerer, Asker

import pipecat_jobs
from pipecat_jobs import (
    JobCancelledError,
    JobError,
    JobGroupError,
    JobTimeoutError,
    NoJobHandlerError,
    OutcomeStatus,
    WorkerLostError,
)
from pipecat_jobs.testing import ChaosBus, Faults, JobHarness

PAIRS = [
    pytest.param(OurPeer, PlainPeer, id="ours-asks-plain"),
    pytest.param(PlainPeer, OurPeer, id="plain-asks-ours"),
]


@pytest.fixture(params=["queue-bus", "slow-bus"])
async def harness(request: pytest.FixtureRequest) -> AsyncIterator[JobHarness]:
    """A harness on Pipecat's bus, and one on a bus whose publish takes its time."""
    bus = AsyncQueueBus()
    if request.param == "slow-bus":
        bus = ChaosBus(seed=3, faults=Faults(slow_publish=0.7, max_delay=0.002))
    # Pipecat's own job() leaves a registry watch behind on every call.
    async with JobHarness(bus, check_watches=False) as harness:
        yield harness


@pytest.fixture
async def blocking_bus() -> ChaosBus:
    return ChaosBus()


@pytest.fixture
async def blocking_harness(blocking_bus: ChaosBus) -> AsyncIterator[JobHarness]:
    async with JobHarness(blocking_bus, check_watches=False) as harness:
        yield harness


# -- both ways alike -----------------------------------------------------------------------------


@pytest.mark.parametrize(("asks", "answers"), PAIRS)
async def test_a_job_is_answered(harness: JobHarness, asks: type, answers: type):
    asker = asks("asker")
    await harness.start(asker, answers("answerer"))

    response = await asker.ask("answerer", "echo", payload={"q": 1})

    assert response == {"from": "answerer", "payload": {"q": 1}}


@pytest.mark.parametrize("asks", [OurPeer, PlainPeer])
async def test_a_group_mixes_plain_workers_and_ours(harness: JobHarness, asks: type):
    asker = asks("asker")
    await harness.start(asker, PlainPeer("plain"), OurPeer("ours"))

    responses = await asker.ask_group("plain", "ours", name="echo", payload={"q": 1})

    assert responses == {
        "plain": {"from": "plain", "payload": {"q": 1}},
        "ours": {"from": "ours", "payload": {"q": 1}},
    }


@pytest.mark.parametrize(("asks", "answers"), PAIRS)
async def test_an_urgent_answer_is_an_answer(harness: JobHarness, asks: type, answers: type):
    asker = asks("asker")
    await harness.start(asker, answers("answerer"))

    assert await asker.ask("answerer", "urgent") == {"urgent": True}


async def test_updates_of_a_plain_worker_arrive_before_its_answer(harness: JobHarness):
    asker = OurPeer("asker")
    await harness.start(asker, PlainPeer("answerer"))

    events, response = await asker.events("answerer", "update")

    assert events == [("update", {"step": 1}), ("update", {"step": 2})]
    assert response == {"steps": 2}


async def test_a_stream_of_a_plain_worker_arrives_whole(harness: JobHarness):
    asker = OurPeer("asker")
    await harness.start(asker, PlainPeer("answerer"))

    events, response = await asker.events("answerer", "stream")

    assert events == [
        ("stream_start", {"kind": "text"}),
        ("stream_data", {"text": "Hello"}),
        ("stream_data", {"text": "there"}),
        ("stream_end", {"chunks": 2}),
    ]
    assert response == {"chunks": 2}


@pytest.mark.parametrize(
    ("name", "heard"),
    [
        ("update", ["on_job_update", "on_job_update", "on_job_response", "on_job_completed"]),
        (
            "stream",
            [
                "on_job_stream_start",
                "on_job_stream_data",
                "on_job_stream_data",
                "on_job_stream_end",
                "on_job_completed",
            ],
        ),
    ],
)
async def test_hooks_of_a_plain_requester_hear_our_updates_and_chunks(
    harness: JobHarness, name: str, heard: list[str]
):
    """By hooks, since Pipecat's ``async for`` may miss what a quick worker says."""
    asker = PlainPeer("asker")
    fired: list[str] = []
    completed = asyncio.Event()
    for event in {*heard}:

        async def keep(_: Any, __: Any, event: str = event) -> None:
            fired.append(event)

        asker.add_event_handler(event, keep)

    async def on_completed(_: Any, __: Any) -> None:
        completed.set()

    asker.add_event_handler("on_job_completed", on_completed)
    await harness.start(asker, OurPeer("answerer"))

    await asker.request_job("answerer", params=JobParams(name=name))
    await completed.wait()
    await harness.settle()

    assert sorted(fired) == sorted(heard)


async def test_a_plain_requester_iterates_over_what_our_worker_says(harness: JobHarness):
    class Patient(OurPeer):
        """Speaks once its requester listens: Pipecat attaches its queue after sending."""

        @pipecat_jobs.job(name="count")
        async def count(self, message: BusJobRequestMessage):
            await self.release.wait()
            yield {"number": 1}
            yield {"number": 2}

    asker, answerer = PlainPeer("asker"), Patient("answerer")
    await harness.start(asker, answerer)

    async with asker.job("answerer", params=JobParams(name="count")) as j:
        answerer.release.set()
        events = [(event.type, event.data) async for event in j]

    assert events == [
        ("stream_start", None),
        ("stream_data", {"number": 1}),
        ("stream_data", {"number": 2}),
        ("stream_end", None),
    ]
    assert j.response == {}


@pytest.mark.parametrize(("asks", "answers"), PAIRS)
async def test_a_requester_asks_for_an_update_and_gets_it(
    harness: JobHarness, asks: type, answers: type
):
    class Reporting(answers):
        async def on_job_update_requested(self, message: Any) -> None:
            await self.send_job_update(message.job_id, {"progress": 0.5})

    asker, answerer = asks("asker"), Reporting("answerer")
    updates: asyncio.Queue[Any] = asyncio.Queue()

    async def keep(_: Any, message: Any) -> None:
        updates.put_nowait(message)

    asker.add_event_handler("on_job_update", keep)
    await harness.start(asker, answerer)
    caller = asyncio.create_task(asker.ask("answerer", "wait"))
    job_id = await answerer.started.get()

    await asker.request_job_update(job_id, "answerer")
    update = await updates.get()
    answerer.release.set()

    assert (update.job_id, update.source, update.update) == (job_id, "answerer", {"progress": 0.5})
    assert await caller == {"from": "answerer"}


# -- failures ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "status", "payload"),
    [
        ("fail", OutcomeStatus.FAILED, {"error": "no such city"}),
        ("error", OutcomeStatus.ERROR, {"code": 7}),
    ],
)
async def test_a_plain_worker_that_fails_says_how_and_why(
    harness: JobHarness, name: str, status: OutcomeStatus, payload: dict
):
    asker = OurPeer("asker")
    await harness.start(asker, PlainPeer("answerer"))

    with pytest.raises(JobError) as failed:
        await asker.ask("answerer", name)

    outcome = failed.value.outcomes["answerer"]
    assert (outcome.status, outcome.response) == (status, payload)
    assert str(next(iter(payload.values()))) in str(failed.value)


@pytest.mark.parametrize(
    ("name", "status", "payload"),
    [
        ("fail", PipecatJobStatus.FAILED, {"error": "no such city"}),
        ("error", PipecatJobStatus.ERROR, {"code": 7}),
    ],
)
async def test_a_plain_requester_hears_how_our_worker_failed(
    harness: JobHarness, name: str, status: PipecatJobStatus, payload: dict
):
    asker = PlainPeer("asker")
    await harness.start(asker, OurPeer("answerer"))

    with pytest.raises(PipecatJobError):
        await asker.ask("answerer", name)

    message = await asker.errors.get()
    assert (message.source, message.status, message.response) == ("answerer", status, payload)


async def test_a_handler_of_ours_that_raises_answers_a_plain_requester(harness: JobHarness):
    asker = PlainPeer("asker")
    await harness.start(asker, Answerer())

    with pytest.raises(PipecatJobError):
        await asker.ask("answerer", "raise")

    message = await asker.errors.get()
    assert message.status == PipecatJobStatus.ERROR
    assert message.response["error"] == "no such topic"
    assert message.response["error_type"] == "ValueError"
    assert "raise_error" in message.response["traceback"]


async def test_a_job_name_our_worker_does_not_know_answers_a_plain_requester(harness: JobHarness):
    asker = PlainPeer("asker")
    await harness.start(asker, Answerer())

    with pytest.raises(PipecatJobError):
        await asker.ask("answerer", "sing")

    message = await asker.errors.get()
    assert message.status == PipecatJobStatus.ERROR
    assert message.response["error_type"] == NoJobHandlerError.__name__
    assert "'sing'" in message.response["error"]


async def test_our_worker_refuses_a_plain_requester_when_it_takes_no_jobs(harness: JobHarness):
    class Busy(OurPeer):
        takes_jobs_when_inactive = False

    asker = PlainPeer("asker")
    await harness.start(asker, Busy("answerer", active=False))

    with pytest.raises(PipecatJobError):
        await asker.ask("answerer", "echo")

    message = await asker.errors.get()
    assert message.status == PipecatJobStatus.FAILED
    assert "inactive" in message.response["error"]


@pytest.mark.parametrize("asks", [OurPeer, PlainPeer])
@pytest.mark.parametrize(("fails", "waits"), [("plain", "ours"), ("ours", "plain")])
async def test_the_first_failure_stops_the_rest_of_a_mixed_group(
    harness: JobHarness, asks: type, fails: str, waits: str
):
    asker, plain, ours = asks("asker"), PlainPeer("plain"), OurPeer("ours")
    await harness.start(asker, plain, ours)
    waiting = {"plain": plain, "ours": ours}[waits]

    # The one that waits is asked first: Pipecat drops a cancel that overtakes its request.
    with pytest.raises(PipecatJobGroupError):
        await asker.ask_group(waits, fails, name="fail or wait", payload={"fails": fails})
    await harness.settle()

    if not waiting.started.empty():
        assert waiting.cancelled == [waiting.started.get_nowait()]
    assert not waiting.active_jobs


async def test_a_mixed_group_goes_on_past_a_failure_when_told_to(harness: JobHarness):
    asker, plain, ours = OurPeer("asker"), PlainPeer("plain"), OurPeer("ours")
    await harness.start(asker, plain, ours)
    ours.release.set()

    params = JobGroupParams(name="fail or wait", payload={"fails": "plain"}, cancel_on_error=False)
    async with asker.job_group("plain", "ours", params=params) as jg:
        pass

    assert jg.outcomes["plain"].status is OutcomeStatus.FAILED
    assert jg.outcomes["plain"].error.message == "no such city"
    assert jg.responses["ours"] == {"from": "ours"}


# -- calling off ---------------------------------------------------------------------------------


async def test_cancelling_our_caller_stops_a_plain_handler(harness: JobHarness):
    asker, answerer = OurPeer("asker"), PlainPeer("answerer")
    await harness.start(asker, answerer)
    caller = asyncio.create_task(asker.ask("answerer", "wait"))
    job_id = await answerer.started.get()

    await cancel(caller)

    assert await answerer.stopped.get() == job_id
    await harness.settle()
    assert not answerer.active_jobs


async def test_a_plain_requester_that_cancels_its_group_stops_our_handler(harness: JobHarness):
    asker, answerer = PlainPeer("asker"), OurPeer("answerer")
    await harness.start(asker, answerer)
    caller = asyncio.create_task(asker.ask("answerer", "wait"))
    job_id = await answerer.started.get()

    await asker.cancel_job_group(job_id, reason="changed my mind")

    assert await answerer.stopped.get() == job_id
    with pytest.raises(PipecatJobError, match="changed my mind"):
        await caller


async def test_a_plain_requester_whose_body_is_cancelled_stops_our_handler(harness: JobHarness):
    asker, answerer = PlainPeer("asker"), OurPeer("answerer")
    await harness.start(asker, answerer)
    caller = asyncio.create_task(asker.events("answerer", "wait"))
    job_id = await answerer.started.get()

    await cancel(caller)

    assert await answerer.stopped.get() == job_id


async def test_a_plain_requesters_timeout_stops_our_handler(harness: JobHarness):
    asker, answerer = PlainPeer("asker"), OurPeer("answerer")
    await harness.start(asker, answerer)

    with pytest.raises(PipecatJobError, match="timeout"):
        await asker.ask("answerer", "wait", timeout=0.05)

    assert await answerer.stopped.get() == await answerer.started.get()


async def test_our_timeout_stops_a_plain_handler(harness: JobHarness):
    asker, answerer = OurPeer("asker"), PlainPeer("answerer")
    await harness.start(asker, answerer)

    with pytest.raises(JobTimeoutError, match="'answerer'"):
        await asker.ask("answerer", "wait", timeout=0.05)

    assert await answerer.stopped.get() == await answerer.started.get()


async def test_a_plain_requesters_cancel_that_overtakes_its_request_wins(
    blocking_harness: JobHarness, blocking_bus: ChaosBus
):
    asker, answerer = PlainPeer("asker"), OurPeer("answerer")
    await blocking_harness.start(asker, answerer)
    held = blocking_bus.hold(BusJobRequestMessage)

    job_id = await asker.request_job("answerer", params=JobParams(name="wait"))
    await asker.cancel_job_group(job_id)
    await blocking_harness.settle()
    held.release()
    answer = await blocking_bus.wait_for(BusJobResponseMessage)

    assert answer.status == PipecatJobStatus.CANCELLED
    assert answerer.started.empty()


# -- a bus that makes publishers wait ------------------------------------------------------------


async def test_what_a_plain_worker_says_while_others_are_still_being_asked_is_not_missed(
    blocking_harness: JobHarness, blocking_bus: ChaosBus
):
    asker, quick, slow = OurPeer("asker"), PlainPeer("quick"), PlainPeer("slow")
    await blocking_harness.start(asker, quick, slow)
    blocked = blocking_bus.block_publish(
        lambda m: isinstance(m, BusJobRequestMessage) and m.target == "slow"
    )

    async def call() -> list[tuple[str, Any]]:
        params = JobGroupParams(name="update")
        async with asker.job_group("quick", "slow", params=params) as jg:
            return [(event.worker_name, event.data) async for event in jg]

    caller = asyncio.create_task(call())
    await blocking_bus.wait_for(
        lambda m: isinstance(m, BusJobResponseMessage) and m.source == "quick"
    )
    await blocking_harness.settle()
    blocked.release()

    assert await caller == [
        ("quick", {"step": 1}),
        ("quick", {"step": 2}),
        ("slow", {"step": 1}),
        ("slow", {"step": 2}),
    ]


async def test_cancelling_our_caller_while_requests_are_sent_stops_the_plain_ones_already_asked(
    blocking_harness: JobHarness, blocking_bus: ChaosBus
):
    asker, first, second = OurPeer("asker"), PlainPeer("first"), PlainPeer("second")
    await blocking_harness.start(asker, first, second)
    blocking_bus.block_publish(
        lambda m: isinstance(m, BusJobRequestMessage) and m.target == "second"
    )
    caller = asyncio.create_task(asker.ask_group("first", "second", name="wait"))
    job_id = await first.started.get()

    await cancel(caller)
    await blocking_harness.settle()

    assert first.cancelled == [job_id]
    assert second.started.empty()
    assert not asker.job_groups


@pytest.mark.parametrize(("asks", "answers"), PAIRS)
async def test_a_cancel_reaches_a_worker_whose_update_is_stuck_in_the_bus(
    blocking_harness: JobHarness, blocking_bus: ChaosBus, asks: type, answers: type
):
    asker, answerer = asks("asker"), answers("answerer")
    await blocking_harness.start(asker, answerer)
    stuck = blocking_bus.block_publish(BusJobUpdateMessage)
    job_id = await asker.request_job("answerer", params=JobParams(name="update"))
    await stuck.wait()

    await asker.cancel_job_group(job_id, reason="enough")

    answer = await blocking_bus.wait_for(BusJobResponseMessage)
    assert answer.status == PipecatJobStatus.CANCELLED
    assert stuck.messages == []


async def test_the_deadline_holds_while_a_plain_workers_answer_is_stuck_in_the_bus(
    blocking_harness: JobHarness, blocking_bus: ChaosBus
):
    asker, answerer = OurPeer("asker"), PlainPeer("answerer")
    await blocking_harness.start(asker, answerer)
    stuck = blocking_bus.block_publish(BusJobResponseMessage)

    with pytest.raises(JobTimeoutError):
        await asker.ask("answerer", "echo", timeout=0.05)

    assert await blocking_bus.wait_for(BusJobCancelMessage)
    stuck.release()
    await blocking_harness.settle()
    assert not asker.job_groups


# -- inactive workers ----------------------------------------------------------------------------


async def test_our_inactive_worker_answers_a_plain_requester(harness: JobHarness):
    asker = PlainPeer("asker")
    await harness.start(asker, OurPeer("answerer", active=False))

    assert (await asker.ask("answerer", "echo"))["from"] == "answerer"


async def test_a_plain_workers_answer_reaches_our_inactive_requester(harness: JobHarness):
    asker = OurPeer("asker", active=False)
    await harness.start(asker, PlainPeer("answerer"))

    events, response = await asker.events("answerer", "update")

    assert events == [("update", {"step": 1}), ("update", {"step": 2})]
    assert response == {"steps": 2}


async def test_a_plain_worker_that_is_inactive_is_waited_for_until_the_deadline(
    harness: JobHarness,
):
    """Pipecat drops the request before anybody of it could answer; the deadline decides."""
    asker = OurPeer("asker")
    await harness.start(asker, PlainPeer("answerer", active=False))

    with pytest.raises(JobTimeoutError, match="'answerer'"):
        await asker.ask("answerer", "echo", timeout=0.05)


# -- workers that go away ------------------------------------------------------------------------


async def test_a_plain_worker_that_ends_with_a_job_open_cancels_it(harness: JobHarness):
    asker, answerer = OurPeer("asker"), PlainPeer("answerer")
    await harness.start(asker, answerer)
    caller = asyncio.create_task(asker.ask("answerer", "silent"))
    await answerer.started.get()

    await harness.end(answerer)

    with pytest.raises(JobCancelledError) as cancelled:
        await caller
    assert cancelled.value.outcomes["answerer"].status is OutcomeStatus.CANCELLED


async def test_our_worker_that_ends_with_a_job_open_answers_a_plain_requester(
    harness: JobHarness,
):
    asker, answerer = PlainPeer("asker"), OurPeer("answerer")
    answers: asyncio.Queue[BusJobResponseMessage] = asyncio.Queue()

    async def keep(_: Any, message: BusJobResponseMessage) -> None:
        answers.put_nowait(message)

    asker.add_event_handler("on_job_response", keep)
    await harness.start(asker, answerer)
    job_id = await asker.request_job("answerer", params=JobParams(name="wait"))
    await answerer.started.get()

    await harness.end(answerer)

    answer = await answers.get()
    assert (answer.job_id, answer.status) == (job_id, PipecatJobStatus.CANCELLED)
    assert "stopped" in answer.response["reason"]
    assert answerer.cancelled == [job_id]


async def test_our_requester_that_ends_stops_a_plain_handler(harness: JobHarness):
    asker, answerer = OurPeer("asker"), PlainPeer("answerer")
    await harness.start(asker, answerer)
    caller = asyncio.create_task(asker.ask("answerer", "wait"))
    job_id = await answerer.started.get()

    await harness.end(asker)

    with pytest.raises(JobCancelledError):
        await caller
    assert await answerer.stopped.get() == job_id


async def test_a_plain_worker_that_has_ended_is_lost_at_once(harness: JobHarness):
    asker, answerer = OurPeer("asker"), PlainPeer("answerer")
    await harness.start(asker, answerer)
    await harness.end(answerer)

    with pytest.raises(WorkerLostError, match="'answerer'"):
        await asker.ask("answerer", "echo")


class Mute(PlainPeer):
    """Ends without a word for the jobs it holds, as a worker that crashed does."""

    async def stop(self) -> None:
        self.active_jobs.clear()
        await super().stop()


async def test_a_plain_worker_that_finished_without_answering_is_lost(harness: JobHarness):
    asker, answerer = OurPeer("asker"), Mute("answerer")
    await harness.start(asker, answerer)
    caller = asyncio.create_task(asker.ask("answerer", "silent"))
    await answerer.started.get()

    await harness.end(answerer)

    with pytest.raises(WorkerLostError, match="'answerer'") as lost:
        await caller
    assert lost.value.outcomes["answerer"].status is OutcomeStatus.LOST


async def test_a_worker_of_ours_whose_last_answer_never_left_is_lost(
    blocking_harness: JobHarness, blocking_bus: ChaosBus
):
    class Hasty(OurPeer):
        job_cancel_grace = 0.02

    asker, answerer = OurPeer("asker"), Hasty("answerer")
    await blocking_harness.start(asker, answerer)
    caller = asyncio.create_task(asker.ask("answerer", "wait", timeout=1))
    await answerer.started.get()
    blocking_bus.block_publish(BusJobResponseMessage)

    await blocking_harness.end(answerer)

    with pytest.raises(WorkerLostError, match="'answerer'"):
        await caller


async def test_a_group_that_loses_one_plain_worker_stops_the_others(harness: JobHarness):
    asker, mute, other = OurPeer("asker"), Mute("mute"), PlainPeer("other")
    await harness.start(asker, mute, other)

    async def call() -> None:
        await asker.ask_group("mute", "other", name="wait")

    mute.release.set()
    mute.send_job_response = _say_nothing
    caller = asyncio.create_task(call())
    await mute.started.get()
    job_id = await other.started.get()
    await harness.end(mute)

    with pytest.raises(WorkerLostError):
        await caller
    assert await other.stopped.get() == job_id


async def _say_nothing(*_: Any, **__: Any) -> None:
    pass


async def test_a_worker_known_to_be_gone_is_lost_when_somebody_says_so(harness: JobHarness):
    asker = OurPeer("asker")
    await harness.start(asker)
    # A worker of another process: nothing here can notice its end.
    await harness.registry.register(WorkerReadyData(worker_name="far", runner="elsewhere"))
    caller = asyncio.create_task(asker.ask("far", "echo"))
    await asker.group_id

    await asker.worker_lost("far", reason="its host is being rebooted")

    with pytest.raises(WorkerLostError, match="its host is being rebooted"):
        await caller


async def test_worker_lost_leaves_other_workers_jobs_alone(harness: JobHarness):
    asker, answerer = OurPeer("asker"), PlainPeer("answerer")
    await harness.start(asker, answerer)
    caller = asyncio.create_task(asker.ask("answerer", "wait"))
    await answerer.started.get()

    await asker.worker_lost("another", reason="gone")
    answerer.release.set()

    assert await caller == {"from": "answerer"}


# -- names ---------------------------------------------------------------------------------------


async def test_pipecats_exceptions_catch_ours(harness: JobHarness):
    asker = Asker()
    await harness.start(asker, PlainPeer("answerer"))

    with pytest.raises(PipecatJobError) as single:
        await asker.ask("answerer", "fail")
    with pytest.raises(PipecatJobGroupError) as group:
        async with asker.job_group("answerer", name="fail"):
            pass

    assert isinstance(single.value, JobError)
    assert isinstance(group.value, JobGroupError)


@pytest.mark.parametrize(
    "error", ["JobCancelledError", "JobTimeoutError", "WorkerLostError", "NoJobHandlerError"]
)
def test_every_way_a_job_ends_is_caught_as_either_of_pipecats_exceptions(error: str):
    assert issubclass(getattr(pipecat_jobs, error), PipecatJobError)
    assert issubclass(getattr(pipecat_jobs, error), PipecatJobGroupError)


def test_job_status_is_pipecats():
    assert pipecat_jobs.JobStatus is PipecatJobStatus
    assert {status.value for status in PipecatJobStatus} <= {s.value for s in OutcomeStatus}
