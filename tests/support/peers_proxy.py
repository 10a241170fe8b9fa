"""Two runners connected by Pipecat's WebSocket proxies, with a worker on each.

A test file takes the fixtures with ``harness = peers_proxy.harness`` and the like.
"""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal, Self

import pytest
import uvicorn
from pipecat.registry.types import WorkerReadyData
from pipecat.workers.base_worker import BaseWorker as PlainWorker
from pipecat.workers.proxy.websocket.client import WebSocketProxyClient
from pipecat.workers.proxy.websocket.server import WebSocketProxyServer
from pipecat.workers.runner import WorkerRunner
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket
from uvicorn.server import ServerState

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
        # As in uvicorn.Server, without its periodic tick, which would end each test late.
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
        """Drop the connection without a closing handshake."""
        for connection in list(self._state.connections):
            connection.transport.abort()

    async def close_as_server(self) -> None:
        await (await self.gateway).stop()

    async def close_as_client(self) -> None:
        await self._harness.end(self.client)


class Call:
    """A link with the requester at either end."""

    def __init__(self, link: Link, direction: Direction, harness: JobHarness):
        self.link = link
        ends = (link.near, link.far)
        self.requester, self.responder = ends if direction == "client-asks" else ends[::-1]
        asks_near = direction == "client-asks"
        self.runner = harness.runner if asks_near else link.far_runner
        self.asking_socket = link.near_socket if asks_near else link.far_socket
        self.responding_socket = link.far_socket if asks_near else link.near_socket

    async def lose_connection(self, how: str) -> None:
        await getattr(self.link, how)()
        # The worker's side does not learn that the requester has left; its handler may now return.
        self.responder.release.set()


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
    requester: PlainWorker,
    responder: PlainWorker,
) -> AsyncIterator[Call]:
    ends = (requester, responder) if direction == "client-asks" else (responder, requester)
    async with Link(harness, *ends) as link:
        await link.connect()
        yield Call(link, direction, harness)


def wire(kind: str, **fields: object) -> bytes:
    message = {"__type__": f"pipecat.bus.messages.{kind}", "__data__": fields}
    return json.dumps(message).encode()


async def send(end: asyncio.Future[Any], data: bytes) -> None:
    connection = await end
    if isinstance(connection, WebSocket):
        await connection.send_bytes(data)
    else:
        await connection.send(data)
