"""Jobs between two runners that Pipecat's WebSocket proxies join."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal, Self

import pytest
import uvicorn
from peers import OurPeer, PlainPeer, cancel
from pipecat.bus.messages import BusJobResponseMessage
from pipecat.pipeline.job_context import JobError as PipecatJobError
from pipecat.registry.types import WorkerReadyData
from pipecat.workers.base_worker import BaseWorker as PlainWorker
from pipecat.workers.proxy.websocket.client import WebSocketProxyClient
from pipecat.workers.proxy.websocket.server import WebSocketProxyServer
from pipecat.workers.runner import WorkerRunner
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket
from support import Answerer, Asker
from uvicorn.server import ServerState

from pipecat_jobs import JobError, JobTimeoutError, OutcomeStatus, WorkerLostError
from pipecat_jobs.testing import ChaosBus, JobHarness

Direction = Literal["client-asks", "server-asks"]


class Link:
    """A worker on the harness's runner and one on a runner behind a WebSocket server."""

    def __init__(self, harness: JobHarness, near: PlainWorker, far: PlainWorker):
        self.near, self.far = near, far
        self.far_runner = WorkerRunner(bus=ChaosBus(), handle_sigint=False)
        self.gateway: asyncio.Future[WebSocketProxyServer] = asyncio.Future()
        self.near_socket: asyncio.Future[Any] = asyncio.Future()
        self.far_socket: asyncio.Future[WebSocket] = asyncio.Future()
        self._harness = harness
        self._listening = socket.socket()
        self._listening.bind(("127.0.0.1", 0))
        app = Starlette(routes=[WebSocketRoute("/ws", self._serve)])
        # uvicorn's default implementation uses a deprecated part of websockets.
        self._config = uvicorn.Config(app, ws="websockets-sansio", log_level="critical")
        self._state = ServerState()
        self.client = WebSocketProxyClient(
            "client",
            url=f"ws://127.0.0.1:{self._listening.getsockname()[1]}/ws",
            remote_worker_name=far.name,
            local_worker_name=near.name,
        )

        async def connected(_: WebSocketProxyClient, connection: Any) -> None:
            self.near_socket.set_result(connection)

        self.client.add_event_handler("on_connected", connected)

    async def _serve(self, websocket: WebSocket) -> None:
        await websocket.accept()
        gateway = WebSocketProxyServer(
            "gateway",
            websocket=websocket,
            worker_name=self.far.name,
            remote_worker_name=self.near.name,
        )

        async def connected(_: WebSocketProxyServer, __: WebSocket) -> None:
            self.far_socket.set_result(websocket)
            self.gateway.set_result(gateway)

        gateway.add_event_handler("on_client_connected", connected)
        await self.far_runner.add_workers(gateway)
        await gateway.wait()

    async def __aenter__(self) -> Self:
        await self.far_runner.add_workers(self.far)
        self._running = asyncio.create_task(self.far_runner.run(auto_end=False))
        # As uvicorn.Server does it, without the ticks of its clock that end each test late.
        self._config.load()
        self._server = await asyncio.get_running_loop().create_server(
            lambda: self._config.http_protocol_class(
                config=self._config, server_state=self._state, app_state={}
            ),
            sock=self._listening,
        )
        await self._harness.start(self.near, self.client)
        # The server proxy announces its worker to the client, the client proxy does not.
        await self.far_runner.registry.register(
            WorkerReadyData(worker_name=self.near.name, runner=self._harness.runner.name)
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._harness.end(self.client)
        await self.far_runner.cancel()
        await self._running
        self._server.close()
        while tasks := list(self._state.tasks):
            await asyncio.wait(tasks)
        await self.cut()
        await self._server.wait_closed()

    async def connect(self) -> None:
        await self.near.activate_worker(self.client.name)
        await self.near_socket
        await self.gateway

    async def cut(self) -> None:
        """Drop the connection without a word."""
        for connection in list(self._state.connections):
            connection.transport.abort()

    async def close_as_server(self) -> None:
        await (await self.gateway).stop()

    async def close_as_client(self) -> None:
        await self._harness.end(self.client)


class Call:
    """A link whose asker may be at either end of it."""

    def __init__(self, link: Link, direction: Direction, harness: JobHarness):
        self.link = link
        ends = (link.near, link.far)
        self.asker, self.answerer = ends if direction == "client-asks" else ends[::-1]
        asks_near = direction == "client-asks"
        self.runner = harness.runner if asks_near else link.far_runner
        self.asking_socket = link.near_socket if asks_near else link.far_socket
        self.answering_socket = link.far_socket if asks_near else link.near_socket

    async def lose_connection(self, how: str) -> None:
        await getattr(self.link, how)()
        # Nothing tells the answering end that nobody waits for it; its handler may now return.
        self.answerer.release.set()


@pytest.fixture(params=["client-asks", "server-asks"])
def direction(request: pytest.FixtureRequest) -> Direction:
    return request.param


@pytest.fixture
async def harness() -> AsyncIterator[JobHarness]:
    # Pipecat's own job() leaves a registry watch behind on every call.
    async with JobHarness(ChaosBus(), check_watches=False) as harness:
        yield harness


@asynccontextmanager
async def calling(
    harness: JobHarness,
    direction: Direction,
    asker: PlainWorker,
    answerer: PlainWorker,
) -> AsyncIterator[Call]:
    ends = (asker, answerer) if direction == "client-asks" else (answerer, asker)
    async with Link(harness, *ends) as link:
        await link.connect()
        yield Call(link, direction, harness)


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


# -- the connection goes away --------------------------------------------------------------------


@pytest.mark.parametrize("answers", [OurPeer, PlainPeer])
@pytest.mark.parametrize("how", ["close_as_server", "close_as_client", "cut"])
async def test_a_connection_that_goes_away_in_mid_job_loses_the_worker(
    harness: JobHarness, direction: Direction, answers: type, how: str
):
    asker, answerer = OurPeer("asker"), answers("answerer")
    async with calling(harness, direction, asker, answerer) as call:
        caller = asyncio.create_task(asker.ask("answerer", "wait"))
        await answerer.started.get()

        await call.lose_connection(how)

        with pytest.raises(WorkerLostError, match="'answerer'") as lost:
            await caller
        assert lost.value.outcomes["answerer"].status is OutcomeStatus.LOST
        assert not asker.job_groups


@pytest.mark.parametrize("how", ["close_as_server", "close_as_client", "cut"])
async def test_a_lost_connection_stops_the_local_rest_of_the_group(
    harness: JobHarness, direction: Direction, how: str
):
    asker, answerer, neighbour = OurPeer("asker"), OurPeer("answerer"), OurPeer("neighbour")
    async with calling(harness, direction, asker, answerer) as call:
        await call.runner.add_workers(neighbour)
        caller = asyncio.create_task(asker.ask_group("answerer", "neighbour", name="wait"))
        await answerer.started.get()
        job_id = await neighbour.started.get()

        await call.lose_connection(how)

        with pytest.raises(WorkerLostError):
            await caller
        assert await neighbour.stopped.get() == job_id


@pytest.mark.parametrize("how", ["close_as_server", "close_as_client", "cut"])
async def test_asking_through_a_closed_connection_is_lost_at_once(
    harness: JobHarness, direction: Direction, how: str
):
    asker = OurPeer("asker")
    async with calling(harness, direction, asker, OurPeer("answerer")) as call:
        caller = asyncio.create_task(asker.ask("answerer", "wait"))
        await call.answerer.started.get()
        await call.lose_connection(how)
        # The end of this first job tells that the asking end knows.
        with pytest.raises(WorkerLostError):
            await caller

        with pytest.raises(WorkerLostError, match="'answerer'"):
            await asker.ask("answerer", "echo")


@pytest.mark.parametrize("urgent", [False, True])
async def test_an_answer_that_arrived_right_before_the_connection_closed_counts(
    harness: JobHarness, direction: Direction, urgent: bool
):
    asker, answerer = OurPeer("asker"), OurPeer("answerer")
    async with calling(harness, direction, asker, answerer) as call:
        caller = asyncio.create_task(asker.ask("answerer", "wait"))
        job_id = await answerer.started.get()

        answer = _wire(
            "BusJobResponseUrgentMessage" if urgent else "BusJobResponseMessage",
            source="answerer",
            target="asker",
            job_id=job_id,
            status="completed",
            response={"last": "words"},
        )
        await _send(call.answering_socket, answer)
        await (await call.answering_socket).close()
        answerer.release.set()

        assert await caller == {"last": "words"}


async def test_an_answer_still_on_the_askers_bus_when_the_connection_closed_counts(
    harness: JobHarness, direction: Direction
):
    """As on a network bus, which takes its time from the proxy to the asker."""
    asker, answerer = OurPeer("asker"), OurPeer("answerer")
    async with calling(harness, direction, asker, answerer) as call:
        caller = asyncio.create_task(asker.ask("answerer", "wait"))
        await answerer.started.get()
        call.runner.bus.delay(BusJobResponseMessage, 0.02)
        answerer.release.set()
        await call.runner.bus.wait_for(BusJobResponseMessage)

        await call.link.cut()

        assert await caller == {"from": "answerer"}


async def test_a_worker_is_watched_as_long_as_one_of_its_jobs_is_open(
    harness: JobHarness, direction: Direction
):
    asker, answerer = OurPeer("asker"), OurPeer("answerer")
    async with calling(harness, direction, asker, answerer) as call:
        caller = asyncio.create_task(asker.ask("answerer", "wait"))
        await answerer.started.get()
        await asker.ask("answerer", "echo")

        await call.lose_connection("cut")

        with pytest.raises(WorkerLostError):
            await caller


async def test_a_remote_worker_is_waited_for_until_its_proxy_connects(harness: JobHarness):
    asker = OurPeer("asker")
    async with Link(harness, asker, OurPeer("answerer")) as link:
        caller = asyncio.create_task(asker.ask("answerer", "echo", timeout=5))
        await harness.settle()
        assert not caller.done()

        await link.connect()

        assert (await caller)["from"] == "answerer"


async def test_a_remote_worker_whose_proxy_never_connects_is_not_ready(harness: JobHarness):
    asker = OurPeer("asker")
    async with Link(harness, asker, OurPeer("answerer")):
        with pytest.raises(JobTimeoutError, match="not ready"):
            await asker.ask("answerer", "echo", timeout=0.05)


# -- nonsense on the wire ------------------------------------------------------------------------


def _wire(kind: str, **fields: object) -> bytes:
    message = {"__type__": f"pipecat.bus.messages.{kind}", "__data__": fields}
    return json.dumps(message).encode()


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
async def test_a_malformed_question_is_logged_and_dropped(
    harness: JobHarness, direction: Direction, job_log, kind: str, fields: dict
):
    asker = OurPeer("asker")
    async with calling(harness, direction, asker, OurPeer("answerer")) as call:
        await _send(call.asking_socket, _wire(kind, source="asker", target="answerer", **fields))
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
async def test_a_malformed_answer_is_logged_and_dropped(
    harness: JobHarness, direction: Direction, job_log, kind: str, fields: dict
):
    asker, answerer = OurPeer("asker"), OurPeer("answerer")
    async with calling(harness, direction, asker, answerer) as call:
        caller = asyncio.create_task(asker.ask("answerer", "wait"))
        job_id = await answerer.started.get()
        fields = {"source": "answerer", "target": "asker", "job_id": job_id, **fields}
        await _send(call.answering_socket, _wire(kind, **fields))
        answerer.release.set()
        response = await caller

    assert response == {"from": "answerer"}
    _assert_dropped(job_log, "asker", kind)


async def test_what_is_no_message_at_all_leaves_the_link_working(
    harness: JobHarness, direction: Direction
):
    asker = OurPeer("asker")
    async with calling(harness, direction, asker, OurPeer("answerer")) as call:
        for nonsense in (b"{", b"[]", b'{"__type__": "no.such.Thing", "__data__": {}}'):
            await _send(call.asking_socket, nonsense)
        response = await asker.ask("answerer", "echo")

    assert response["from"] == "answerer"


async def _send(end: asyncio.Future[Any], data: bytes) -> None:
    connection = await end
    if isinstance(connection, WebSocket):
        await connection.send_bytes(data)
    else:
        await connection.send(data)


def _assert_dropped(job_log: list, worker: str, kind: str) -> None:
    dropped = [r.message for r in job_log if r.level == "WARNING" and "dropping" in r.message]
    assert len(dropped) == 1
    assert f"'{worker}'" in dropped[0]
    assert kind in dropped[0]
