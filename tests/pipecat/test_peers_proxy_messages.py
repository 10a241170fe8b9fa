"""Messages across the WebSocket between two runners: jobs, responses, cancels, malformed data."""

import asyncio

import pytest
from pipecat.pipeline.job_context import JobError as PipecatJobError
from support import peers_proxy
from support.peers import OurPeer, PlainPeer, cancel
from support.peers_proxy import Direction, calling, send, wire
from support.workers import Answerer, Asker

from pipecat_jobs import JobError, OutcomeStatus
from pipecat_jobs.testing import JobHarness

direction = peers_proxy.direction
harness = peers_proxy.harness

KINDS = pytest.mark.parametrize(
    ("asks", "answers"),
    [
        pytest.param(OurPeer, OurPeer, id="ours-ours"),
        pytest.param(OurPeer, PlainPeer, id="ours-plain"),
        pytest.param(PlainPeer, OurPeer, id="plain-ours"),
    ],
)


@KINDS
async def test_a_job_crosses_the_wire(
    harness: JobHarness, direction: Direction, asks: type, answers: type
):
    asker, answerer = asks("asker"), answers("answerer")
    async with calling(harness, direction, asker, answerer):
        response = await asker.ask("answerer", "echo", payload={"q": [1, None, "ü"]})

        assert response == {"from": "answerer", "payload": {"q": [1, None, "ü"]}}
        assert not asker.job_groups
        assert not answerer.active_jobs


@KINDS
async def test_a_group_mixes_a_remote_and_a_local_worker(
    harness: JobHarness, direction: Direction, asks: type, answers: type
):
    asker, answerer = asks("asker"), answers("answerer")
    async with calling(harness, direction, asker, answerer) as call:
        await call.runner.add_workers(OurPeer("neighbour"))

        responses = await asker.ask_group("answerer", "neighbour", name="echo")

    assert {name: response["from"] for name, response in responses.items()} == {
        "answerer": "answerer",
        "neighbour": "neighbour",
    }


@pytest.mark.parametrize("answers", [OurPeer, PlainPeer])
async def test_updates_and_chunks_cross_the_wire_in_order(
    harness: JobHarness, direction: Direction, answers: type
):
    asker = OurPeer("asker")
    async with calling(harness, direction, asker, answers("answerer")):
        updates, _ = await asker.events("answerer", "update")
        chunks, response = await asker.events("answerer", "stream")

    assert updates == [("update", {"step": 1}), ("update", {"step": 2})]
    assert chunks == [
        ("stream_start", {"kind": "text"}),
        ("stream_data", {"text": "Hello"}),
        ("stream_data", {"text": "there"}),
        ("stream_end", {"chunks": 2}),
    ]
    assert response == {"chunks": 2}


async def test_an_error_brings_the_remote_traceback(harness: JobHarness, direction: Direction):
    asker = Asker()
    async with calling(harness, direction, asker, Answerer()):
        with pytest.raises(JobError, match="no such topic") as failed:
            await asker.ask("answerer", "raise")

    error = failed.value.outcomes["answerer"].error
    assert error.type == "ValueError"
    assert "in raise_error" in error.traceback


@pytest.mark.parametrize("answers", [OurPeer, PlainPeer])
async def test_a_failure_brings_its_payload(
    harness: JobHarness, direction: Direction, answers: type
):
    asker = OurPeer("asker")
    async with calling(harness, direction, asker, answers("answerer")):
        with pytest.raises(JobError, match="no such city") as failed:
            await asker.ask("answerer", "fail")

    assert failed.value.outcomes["answerer"].status is OutcomeStatus.FAILED


async def test_our_error_reaches_a_plain_requester(harness: JobHarness, direction: Direction):
    asker = PlainPeer("asker")
    async with calling(harness, direction, asker, Answerer()):
        with pytest.raises(PipecatJobError):
            await asker.ask("answerer", "raise")

        message = await asker.errors.get()
        assert message.response["error"] == "no such topic"


async def test_a_status_arrives_as_text_and_is_understood(
    harness: JobHarness, direction: Direction
):
    asker = Asker()
    async with calling(harness, direction, asker, Answerer()):
        async with asker.job("answerer", name="echo") as j:
            pass
        await harness.settle()

    answers = [message for event, message in asker.hooks if event == "on_job_response"]
    assert [type(message.status) for message in answers] == [str]
    assert j.outcome.status is OutcomeStatus.COMPLETED


@KINDS
async def test_a_cancel_reaches_the_remote_handler(
    harness: JobHarness, direction: Direction, asks: type, answers: type
):
    asker, answerer = asks("asker"), answers("answerer")
    async with calling(harness, direction, asker, answerer):
        caller = asyncio.create_task(asker.events("answerer", "wait"))
        job_id = await answerer.started.get()

        await cancel(caller)

        assert await answerer.stopped.get() == job_id
        assert not asker.job_groups


@KINDS
async def test_a_timeout_reaches_the_remote_handler(
    harness: JobHarness, direction: Direction, asks: type, answers: type
):
    asker, answerer = asks("asker"), answers("answerer")
    async with calling(harness, direction, asker, answerer):
        with pytest.raises(PipecatJobError, match="timeout"):
            await asker.ask("answerer", "wait", timeout=0.05)

        assert await answerer.stopped.get() == await answerer.started.get()


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
    asker = OurPeer("asker")
    async with calling(harness, direction, asker, OurPeer("answerer")) as call:
        await send(call.asking_socket, wire(kind, source="asker", target="answerer", **fields))
        response = await asker.ask("answerer", "echo")

    assert response["from"] == "answerer"
    _assert_dropped(job_log, "answerer", kind)


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
    asker, answerer = OurPeer("asker"), OurPeer("answerer")
    async with calling(harness, direction, asker, answerer) as call:
        caller = asyncio.create_task(asker.ask("answerer", "wait"))
        job_id = await answerer.started.get()
        fields = {"source": "answerer", "target": "asker", "job_id": job_id, **fields}
        await send(call.answering_socket, wire(kind, **fields))
        answerer.release.set()
        response = await caller

    assert response == {"from": "answerer"}
    _assert_dropped(job_log, "asker", kind)


async def test_data_that_is_not_a_message_does_not_break_the_connection(
    harness: JobHarness, direction: Direction
):
    asker = OurPeer("asker")
    async with calling(harness, direction, asker, OurPeer("answerer")) as call:
        for nonsense in (b"{", b"[]", b'{"__type__": "no.such.Thing", "__data__": {}}'):
            await send(call.asking_socket, nonsense)
        response = await asker.ask("answerer", "echo")

    assert response["from"] == "answerer"


def _assert_dropped(job_log: list, worker: str, kind: str) -> None:
    dropped = [r.message for r in job_log if r.level == "WARNING" and "dropping" in r.message]
    assert len(dropped) == 1
    assert f"'{worker}'" in dropped[0]
    assert kind in dropped[0]
