"""Jobs between plain Pipecat workers and ours on one bus: results, failures, names."""

import asyncio
from typing import Any

import pytest
from pipecat.bus.messages import BusJobRequestMessage
from pipecat.pipeline.job_context import JobError as PipecatJobError
from pipecat.pipeline.job_context import JobGroupError as PipecatJobGroupError
from pipecat.pipeline.job_context import JobGroupParams, JobParams
from pipecat.pipeline.job_context import JobStatus as PipecatJobStatus
from support import peers
from support.peers import PAIRS, OurPeer, PlainPeer
from support.workers import Requester, Responder, until

import pipecat_jobs
from pipecat_jobs import JobError, JobGroupError, JobTimeoutError, NoJobHandlerError, OutcomeStatus
from pipecat_jobs.testing import JobHarness

pytestmark = pytest.mark.every_bus("slow")

harness = peers.harness


# -- both directions -----------------------------------------------------------------------------


@pytest.mark.parametrize(("asks", "responds"), PAIRS)
async def test_a_job_gets_a_response(harness: JobHarness, asks: type, responds: type):
    requester = asks("requester")
    await harness.start(requester, responds("responder"))

    response = await requester.ask("responder", "echo", payload={"q": 1})

    assert response == {"from": "responder", "payload": {"q": 1}}


@pytest.mark.parametrize("asks", [OurPeer, PlainPeer])
async def test_a_group_mixes_plain_workers_and_ours(harness: JobHarness, asks: type):
    requester = asks("requester")
    await harness.start(requester, PlainPeer("plain"), OurPeer("ours"))

    responses = await requester.ask_group("plain", "ours", name="echo", payload={"q": 1})

    assert responses == {
        "plain": {"from": "plain", "payload": {"q": 1}},
        "ours": {"from": "ours", "payload": {"q": 1}},
    }


@pytest.mark.parametrize(("asks", "responds"), PAIRS)
async def test_an_urgent_response_is_a_response(harness: JobHarness, asks: type, responds: type):
    requester = asks("requester")
    await harness.start(requester, responds("responder"))

    assert await requester.ask("responder", "urgent") == {"urgent": True}


async def test_updates_of_a_plain_worker_arrive_before_its_response(harness: JobHarness):
    requester = OurPeer("requester")
    await harness.start(requester, PlainPeer("responder"))

    events, response = await requester.events("responder", "update")

    assert events == [("update", {"step": 1}), ("update", {"step": 2})]
    assert response == {"steps": 2}


async def test_a_stream_of_a_plain_worker_arrives_whole(harness: JobHarness):
    requester = OurPeer("requester")
    await harness.start(requester, PlainPeer("responder"))

    events, response = await requester.events("responder", "stream")

    assert events == [
        ("stream_start", {"kind": "text"}),
        ("stream_data", {"text": "Hello"}),
        ("stream_data", {"text": "there"}),
        ("stream_end", {"chunks": 2}),
    ]
    assert response == {"chunks": 2}


@pytest.mark.parametrize(
    ("name", "received"),
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
async def test_hooks_of_a_plain_requester_get_our_updates_and_chunks(
    harness: JobHarness, name: str, received: list[str]
):
    """The test uses hooks, since Pipecat's ``async for`` may miss messages of a quick worker."""
    requester = PlainPeer("requester")
    fired: list[str] = []
    completed = asyncio.Event()
    for event in {*received}:

        async def keep(_: Any, __: Any, event: str = event) -> None:
            fired.append(event)

        requester.add_event_handler(event, keep)

    async def on_completed(_: Any, __: Any) -> None:
        completed.set()

    requester.add_event_handler("on_job_completed", on_completed)
    await harness.start(requester, OurPeer("responder"))

    await requester.request_job("responder", params=JobParams(name=name))
    await completed.wait()
    await harness.settle()

    assert sorted(fired) == sorted(received)


async def test_a_plain_requester_iterates_over_messages_of_our_worker(harness: JobHarness):
    class Patient(OurPeer):
        """Sends once its requester iterates, since Pipecat attaches its queue late."""

        @pipecat_jobs.job(name="count")
        async def count(self, message: BusJobRequestMessage):
            await self.release.wait()
            yield {"number": 1}
            yield {"number": 2}

    requester, responder = PlainPeer("requester"), Patient("responder")
    await harness.start(requester, responder)

    async with requester.job("responder", params=JobParams(name="count")) as j:
        responder.release.set()
        events = [(event.type, event.data) async for event in j]

    assert events == [
        ("stream_start", None),
        ("stream_data", {"number": 1}),
        ("stream_data", {"number": 2}),
        ("stream_end", None),
    ]
    assert j.response == {}


@pytest.mark.parametrize(("asks", "responds"), PAIRS)
async def test_a_requester_requests_an_update_and_gets_it(
    harness: JobHarness, asks: type, responds: type
):
    class Reporting(responds):
        async def on_job_update_requested(self, message: Any) -> None:
            await self.send_job_update(message.job_id, {"progress": 0.5})

    requester, responder = asks("requester"), Reporting("responder")
    updates: asyncio.Queue[Any] = asyncio.Queue()

    async def keep(_: Any, message: Any) -> None:
        updates.put_nowait(message)

    requester.add_event_handler("on_job_update", keep)
    await harness.start(requester, responder)
    call_task = asyncio.create_task(requester.ask("responder", "wait"))
    job_id = await responder.started.get()

    await requester.request_job_update(job_id, "responder")
    update = await updates.get()
    responder.release.set()

    assert (update.job_id, update.source, update.update) == (job_id, "responder", {"progress": 0.5})
    assert await call_task == {"from": "responder"}


# -- failures ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "status", "payload"),
    [
        ("fail", OutcomeStatus.FAILED, {"error": "no such city"}),
        ("error", OutcomeStatus.ERROR, {"code": 7}),
    ],
)
async def test_the_failure_of_a_plain_worker_has_its_status_and_reason(
    harness: JobHarness, name: str, status: OutcomeStatus, payload: dict
):
    requester = OurPeer("requester")
    await harness.start(requester, PlainPeer("responder"))

    with pytest.raises(JobError) as failed:
        await requester.ask("responder", name)

    outcome = failed.value.outcomes["responder"]
    assert (outcome.status, outcome.response) == (status, payload)
    assert str(next(iter(payload.values()))) in str(failed.value)


@pytest.mark.parametrize(
    ("name", "status", "payload"),
    [
        ("fail", PipecatJobStatus.FAILED, {"error": "no such city"}),
        ("error", PipecatJobStatus.ERROR, {"code": 7}),
    ],
)
async def test_a_plain_requester_gets_the_failure_of_our_worker(
    harness: JobHarness, name: str, status: PipecatJobStatus, payload: dict
):
    requester = PlainPeer("requester")
    await harness.start(requester, OurPeer("responder"))

    with pytest.raises(PipecatJobError):
        await requester.ask("responder", name)

    message = await requester.errors.get()
    assert (message.source, message.status, message.response) == ("responder", status, payload)


async def test_our_handler_that_raises_gives_a_plain_requester_an_error_response(
    harness: JobHarness,
):
    requester = PlainPeer("requester")
    await harness.start(requester, Responder())

    with pytest.raises(PipecatJobError):
        await requester.ask("responder", "raise")

    message = await requester.errors.get()
    assert message.status == PipecatJobStatus.ERROR
    assert message.response["error"] == "no such topic"
    assert message.response["error_type"] == "ValueError"
    assert "raise_error" in message.response["traceback"]


async def test_a_job_name_that_our_worker_does_not_know_gives_a_plain_requester_an_error_response(
    harness: JobHarness,
):
    requester = PlainPeer("requester")
    await harness.start(requester, Responder())

    with pytest.raises(PipecatJobError):
        await requester.ask("responder", "sing")

    message = await requester.errors.get()
    assert message.status == PipecatJobStatus.ERROR
    assert message.response["error_type"] == NoJobHandlerError.__name__
    assert "'sing'" in message.response["error"]


async def test_our_worker_refuses_a_plain_requester_when_it_takes_no_jobs(harness: JobHarness):
    class Busy(OurPeer):
        takes_jobs_when_inactive = False

    requester = PlainPeer("requester")
    await harness.start(requester, Busy("responder", active=False))

    with pytest.raises(PipecatJobError):
        await requester.ask("responder", "echo")

    message = await requester.errors.get()
    assert message.status == PipecatJobStatus.FAILED
    assert "inactive" in message.response["error"]


@pytest.mark.parametrize("asks", [OurPeer, PlainPeer])
@pytest.mark.parametrize(("fails", "waits"), [("plain", "ours"), ("ours", "plain")])
async def test_the_first_failure_stops_the_rest_of_a_mixed_group(
    harness: JobHarness, asks: type, fails: str, waits: str
):
    requester, plain, ours = asks("requester"), PlainPeer("plain"), OurPeer("ours")
    await harness.start(requester, plain, ours)
    waiting = {"plain": plain, "ours": ours}[waits]

    # The waiting worker is asked first: Pipecat drops a cancel that overtakes its request.
    with pytest.raises(PipecatJobGroupError):
        await requester.ask_group(waits, fails, name="fail or wait", payload={"fails": fails})
    await harness.settle()
    # A slow bus may still be sending the cancel.
    await until(lambda: not waiting.active_jobs)

    if not waiting.started.empty():
        assert waiting.cancelled == [waiting.started.get_nowait()]


async def test_a_mixed_group_with_cancel_on_error_off_goes_on_after_a_failure(harness: JobHarness):
    requester, plain, ours = OurPeer("requester"), PlainPeer("plain"), OurPeer("ours")
    await harness.start(requester, plain, ours)
    ours.release.set()

    params = JobGroupParams(name="fail or wait", payload={"fails": "plain"}, cancel_on_error=False)
    async with requester.job_group("plain", "ours", params=params) as jg:
        pass

    assert jg.outcomes["plain"].status is OutcomeStatus.FAILED
    assert jg.outcomes["plain"].error.message == "no such city"
    assert jg.responses["ours"] == {"from": "ours"}


# -- inactive workers ----------------------------------------------------------------------------


async def test_our_inactive_worker_responds_to_a_plain_requester(harness: JobHarness):
    requester = PlainPeer("requester")
    await harness.start(requester, OurPeer("responder", active=False))

    assert (await requester.ask("responder", "echo"))["from"] == "responder"


async def test_a_plain_workers_response_reaches_our_inactive_requester(harness: JobHarness):
    requester = OurPeer("requester", active=False)
    await harness.start(requester, PlainPeer("responder"))

    events, response = await requester.events("responder", "update")

    assert events == [("update", {"step": 1}), ("update", {"step": 2})]
    assert response == {"steps": 2}


async def test_a_job_for_an_inactive_plain_worker_waits_until_the_deadline(
    harness: JobHarness,
):
    """Pipecat drops the request unseen, so only the deadline can end the job."""
    requester = OurPeer("requester")
    await harness.start(requester, PlainPeer("responder", active=False))

    with pytest.raises(JobTimeoutError, match="'responder'"):
        await requester.ask("responder", "echo", timeout=0.05)


# -- names ---------------------------------------------------------------------------------------


async def test_an_except_for_pipecats_exceptions_catches_ours(harness: JobHarness):
    requester = Requester()
    await harness.start(requester, PlainPeer("responder"))

    with pytest.raises(PipecatJobError) as single:
        await requester.ask("responder", "fail")
    with pytest.raises(PipecatJobGroupError) as group:
        async with requester.job_group("responder", name="fail"):
            pass

    assert isinstance(single.value, JobError)
    assert isinstance(group.value, JobGroupError)


@pytest.mark.parametrize(
    "error", ["JobCancelledError", "JobTimeoutError", "WorkerLostError", "NoJobHandlerError"]
)
def test_every_failure_of_a_job_is_caught_as_either_of_pipecats_exceptions(error: str):
    assert issubclass(getattr(pipecat_jobs, error), PipecatJobError)
    assert issubclass(getattr(pipecat_jobs, error), PipecatJobGroupError)


def test_our_job_status_is_pipecats():
    assert pipecat_jobs.JobStatus is PipecatJobStatus
    assert {status.value for status in PipecatJobStatus} <= {s.value for s in OutcomeStatus}
