"""Messages across the WebSocket between two runners: jobs, responses, cancels, malformed data."""

import asyncio

import pytest
from pipecat.pipeline.job_context import JobError as PipecatJobError
from support import peers_proxy
from support.peers import OurPeer, PlainPeer, cancel
from support.peers_proxy import Direction, calling, send, wire
from support.workers import Requester, Responder

from pipecat_jobs import JobError, OutcomeStatus
from pipecat_jobs.testing import JobHarness

direction = peers_proxy.direction
harness = peers_proxy.harness

KINDS = pytest.mark.parametrize(
    ("asks", "responds"),
    [
        pytest.param(OurPeer, OurPeer, id="ours-ours"),
        pytest.param(OurPeer, PlainPeer, id="ours-plain"),
        pytest.param(PlainPeer, OurPeer, id="plain-ours"),
    ],
)


@KINDS
async def test_a_job_crosses_the_wire(
    harness: JobHarness, direction: Direction, asks: type, responds: type
):
    requester, responder = asks("requester"), responds("responder")
    async with calling(harness, direction, requester, responder):
        response = await requester.ask("responder", "echo", payload={"q": [1, None, "ü"]})

        assert response == {"from": "responder", "payload": {"q": [1, None, "ü"]}}
        assert not requester.job_groups
        assert not responder.active_jobs


@KINDS
async def test_a_group_mixes_a_remote_and_a_local_worker(
    harness: JobHarness, direction: Direction, asks: type, responds: type
):
    requester, responder = asks("requester"), responds("responder")
    async with calling(harness, direction, requester, responder) as call:
        await call.runner.add_workers(OurPeer("neighbour"))

        responses = await requester.ask_group("responder", "neighbour", name="echo")

    assert {name: response["from"] for name, response in responses.items()} == {
        "responder": "responder",
        "neighbour": "neighbour",
    }


@pytest.mark.parametrize("responds", [OurPeer, PlainPeer])
async def test_updates_and_chunks_cross_the_wire_in_order(
    harness: JobHarness, direction: Direction, responds: type
):
    requester = OurPeer("requester")
    async with calling(harness, direction, requester, responds("responder")):
        updates, _ = await requester.events("responder", "update")
        chunks, response = await requester.events("responder", "stream")

    assert updates == [("update", {"step": 1}), ("update", {"step": 2})]
    assert chunks == [
        ("stream_start", {"kind": "text"}),
        ("stream_data", {"text": "Hello"}),
        ("stream_data", {"text": "there"}),
        ("stream_end", {"chunks": 2}),
    ]
    assert response == {"chunks": 2}


async def test_an_error_brings_the_remote_traceback(harness: JobHarness, direction: Direction):
    requester = Requester()
    async with calling(harness, direction, requester, Responder()):
        with pytest.raises(JobError, match="no such topic") as failed:
            await requester.ask("responder", "raise")

    error = failed.value.outcomes["responder"].error
    assert error.type == "ValueError"
    assert "in raise_error" in error.traceback


@pytest.mark.parametrize("responds", [OurPeer, PlainPeer])
async def test_a_failure_brings_its_payload(
    harness: JobHarness, direction: Direction, responds: type
):
    requester = OurPeer("requester")
    async with calling(harness, direction, requester, responds("responder")):
        with pytest.raises(JobError, match="no such city") as failed:
            await requester.ask("responder", "fail")

    assert failed.value.outcomes["responder"].status is OutcomeStatus.FAILED


async def test_our_error_reaches_a_plain_requester(harness: JobHarness, direction: Direction):
    requester = PlainPeer("requester")
    async with calling(harness, direction, requester, Responder()):
        with pytest.raises(PipecatJobError):
            await requester.ask("responder", "raise")

        message = await requester.errors.get()
        assert message.response["error"] == "no such topic"


async def test_a_status_arrives_as_text_and_is_understood(
    harness: JobHarness, direction: Direction
):
    requester = Requester()
    async with calling(harness, direction, requester, Responder()):
        async with requester.job("responder", name="echo") as j:
            pass
        await harness.settle()

    responses = [message for event, message in requester.hooks if event == "on_job_response"]
    assert [type(message.status) for message in responses] == [str]
    assert j.outcome.status is OutcomeStatus.COMPLETED


@KINDS
async def test_a_cancel_reaches_the_remote_handler(
    harness: JobHarness, direction: Direction, asks: type, responds: type
):
    requester, responder = asks("requester"), responds("responder")
    async with calling(harness, direction, requester, responder):
        call_task = asyncio.create_task(requester.events("responder", "wait"))
        job_id = await responder.started.get()

        await cancel(call_task)

        assert await responder.stopped.get() == job_id
        assert not requester.job_groups


@KINDS
async def test_a_timeout_reaches_the_remote_handler(
    harness: JobHarness, direction: Direction, asks: type, responds: type
):
    requester, responder = asks("requester"), responds("responder")
    async with calling(harness, direction, requester, responder):
        with pytest.raises(PipecatJobError, match="timeout"):
            await requester.ask("responder", "wait", timeout=1.0)

        assert await responder.stopped.get() == await responder.started.get()


# -- malformed data ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("BusJobRequestMessage", {"job_name": "echo"}),
        ("BusJobRequestMessage", {"job_id": 7, "job_name": "echo"}),
        ("BusJobRequestMessage", {"job_id": "x", "job_name": "echo", "payload": "text"}),
        ("BusJobRequestMessage", {"job_id": "x", "job_name": ["echo"]}),
        ("BusJobCancelMessage", {"reason": "no id"}),
        ("BusJobUpdateRequestMessage", {}),
    ],
)
async def test_a_malformed_request_is_logged_and_dropped(
    harness: JobHarness, direction: Direction, job_log, kind: str, fields: dict
):
    requester = OurPeer("requester")
    async with calling(harness, direction, requester, OurPeer("responder")) as call:
        await send(call.asking_socket, wire(kind, source="requester", target="responder", **fields))
        response = await requester.ask("responder", "echo")

    assert response["from"] == "responder"
    _assert_dropped(job_log, "responder", kind)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("BusJobResponseMessage", {"status": "completed", "job_id": None}),
        ("BusJobResponseMessage", {"status": "great"}),
        ("BusJobResponseMessage", {}),
        ("BusJobResponseMessage", {"status": "completed", "response": [1]}),
        ("BusJobUpdateMessage", {"update": "half"}),
        ("BusJobStreamDataMessage", {"data": 3}),
        ("BusJobStreamEndMessage", {"data": "end"}),
    ],
)
async def test_a_malformed_response_is_logged_and_dropped(
    harness: JobHarness, direction: Direction, job_log, kind: str, fields: dict
):
    requester, responder = OurPeer("requester"), OurPeer("responder")
    async with calling(harness, direction, requester, responder) as call:
        call_task = asyncio.create_task(requester.ask("responder", "wait"))
        job_id = await responder.started.get()
        fields = {"source": "responder", "target": "requester", "job_id": job_id, **fields}
        await send(call.responding_socket, wire(kind, **fields))
        responder.release.set()
        response = await call_task

    assert response == {"from": "responder"}
    _assert_dropped(job_log, "requester", kind)


async def test_data_that_is_not_a_message_does_not_break_the_connection(
    harness: JobHarness, direction: Direction
):
    requester = OurPeer("requester")
    async with calling(harness, direction, requester, OurPeer("responder")) as call:
        for nonsense in (b"{", b"[]", b'{"__type__": "no.such.Thing", "__data__": {}}'):
            await send(call.asking_socket, nonsense)
        response = await requester.ask("responder", "echo")

    assert response["from"] == "responder"


def _assert_dropped(job_log: list, worker: str, kind: str) -> None:
    dropped = [r.message for r in job_log if r.level == "WARNING" and "dropping" in r.message]
    assert len(dropped) == 1
    assert f"'{worker}'" in dropped[0]
    assert kind in dropped[0]
