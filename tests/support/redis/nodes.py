"""Processes of a channel that can be killed: forked from one that has imported everything."""

import asyncio
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import AsyncIterator
from multiprocessing import forkserver
from typing import Any

import pytest
from pipecat.bus.messages import BusJobRequestMessage
from pipecat.bus.network.redis import RedisBus
from pipecat.workers.runner import WorkerRunner
from redis.asyncio import Redis

from pipecat_jobs import BaseWorker, JobError, job, job_attempt
from pipecat_jobs.bus.redis import EmbeddedRedis, RedisStreamsBus, drain_on_sigterm
from support.redis.processes import CHANNEL, LEASE

_FORKS = multiprocessing.get_context("forkserver")


def _prepare_forks() -> None:
    """Have one process import everything that its forks need."""
    _FORKS.set_forkserver_preload(["support.redis.nodes"])
    # The fork server uses the module path of the environment, not that of this process.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        forkserver.ensure_running()


class Notes:
    """Notes from the processes to the test, apart from the bus: a list on the same server."""

    def __init__(self, url: str):
        self._redis = Redis.from_url(url, db=1, decode_responses=True)
        self._unread: list[dict[str, Any]] = []

    async def write(self, what: str, **details: Any) -> None:
        note = {"what": what, "pid": os.getpid(), **details}
        await self._redis.rpush("notes", json.dumps(note))

    async def next(self, what: str, **details: Any) -> dict[str, Any]:
        """Wait for a note with this content; the others are kept."""
        wanted = {"what": what, **details}
        while True:
            for note in self._unread:
                if wanted.items() <= note.items():
                    self._unread.remove(note)
                    return note
            _, text = await self._redis.blpop("notes")
            self._unread.append(json.loads(text))

    async def rest(self) -> list[dict[str, Any]]:
        """Take the unread notes."""
        texts = await self._redis.lrange("notes", 0, -1)
        await self._redis.delete("notes")
        rest, self._unread = [*self._unread, *map(json.loads, texts)], []
        return rest

    async def open_gate(self, name: str, times: int = 1) -> None:
        await self._redis.rpush(f"gate:{name}", *["open"] * times)

    async def pass_gate(self, name: str) -> None:
        await self._redis.blpop(f"gate:{name}")

    async def close(self) -> None:
        await self._redis.aclose()


class NodeWorker(BaseWorker):
    """Does the jobs of the test, and writes notes about them."""

    def __init__(self, name: str, notes: Notes):
        super().__init__(name)
        self._notes = notes

    async def _hold(self, message: BusJobRequestMessage) -> dict:
        attempt, payload = job_attempt(message), message.payload or {}
        about = {"job": message.job_id, "attempt": attempt, "worker": self.name}
        await self._notes.write("started", **about)
        try:
            await self._notes.pass_gate(payload.get("gate", "never"))
        except asyncio.CancelledError:
            await self._notes.write("cancelled", **about)
            raise
        await self._notes.write("finished", **about)
        return {"pid": os.getpid(), "attempt": attempt}

    @job(name="echo")
    async def echo(self, message: BusJobRequestMessage) -> dict:
        return {"pid": os.getpid(), "attempt": job_attempt(message), "payload": message.payload}

    @job(name="hold")
    async def hold(self, message: BusJobRequestMessage) -> dict:
        return await self._hold(message)

    @job(name="narrow", max_concurrency=2)
    async def narrow(self, message: BusJobRequestMessage) -> dict:
        return await self._hold(message)

    @job(name="fly", key="ship")
    async def fly(self, message: BusJobRequestMessage) -> dict:
        return await self._hold(message)

    @job(name="pay", run_once=True)
    async def pay(self, message: BusJobRequestMessage) -> dict:
        return await self._hold(message)

    @job(name="poison")
    async def poison(self, message: BusJobRequestMessage) -> dict:
        await self._notes.write("started", job=message.job_id, attempt=job_attempt(message))
        os.kill(os.getpid(), signal.SIGKILL)
        return {}

    @job(name="count")
    async def count(self, message: BusJobRequestMessage):
        for number in range(message.payload["to"]):
            yield {"number": number, "attempt": job_attempt(message)}
        if message.payload.get("gate") and job_attempt(message) == 1:
            await self._notes.write("counted", job=message.job_id)
            await self._notes.pass_gate(message.payload["gate"])


class NodeRequester(BaseWorker):
    """Requests one job as soon as it can, and writes a note about its end."""

    def __init__(self, name: str, notes: Notes, *, asks: str, job: str, **payload: Any):
        super().__init__(name)
        self._notes = notes
        self._asks = (asks, job, payload)

    async def start(self) -> None:
        await super().start()
        self.create_task(self._ask(), "ask")

    async def _ask(self) -> None:
        worker, name, payload = self._asks
        await self._notes.write("asking")
        try:
            async with self.job(worker, name=name, payload=payload) as j:
                pass
            await self._notes.write("completed", response=j.response)
        except JobError as error:
            [outcome] = error.outcomes.values()
            await self._notes.write("ended", status=outcome.status, reason=outcome.reason)


async def _run(url: str, spec: dict[str, Any]) -> None:
    notes = Notes(url)
    bus = _pubsub_bus(url) if spec.get("pubsub") else _streams_bus(url, spec)
    runner = WorkerRunner(
        name=spec["name"], bus=bus, handle_sigint=False, handle_sigterm=spec.get("pubsub", False)
    )

    if isinstance(bus, RedisStreamsBus):
        drain_on_sigterm(runner, timeout=spec.get("drain_timeout"))
    workers = [NodeWorker(name, notes) for name in spec.get("workers", [])]
    requesters = [
        NodeRequester(notes=notes, **requester) for requester in spec.get("requesters", [])
    ]
    await runner.add_workers(*workers, *requesters)
    on_ready = notes.write("ready", name=spec["name"])
    runner.add_event_handler("on_ready", lambda _: asyncio.ensure_future(on_ready))
    await runner.run(auto_end=False)
    await notes.close()


def _streams_bus(url: str, spec: dict[str, Any]) -> RedisStreamsBus:
    options = {"lease": LEASE, "takeover": LEASE, **spec.get("options", {})}
    return RedisStreamsBus(spec.get("url", url), **options)


def _pubsub_bus(url: str) -> RedisBus:
    return RedisBus(redis=Redis.from_url(url), channel=CHANNEL)


def run_node(url: str, spec: dict[str, Any]) -> None:
    asyncio.run(_run(url, spec))


class Node:
    """One separate process."""

    def __init__(self, url: str, spec: dict[str, Any]):
        _prepare_forks()
        self._process = _FORKS.Process(target=run_node, args=(url, spec), daemon=True)
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def send(self, number: signal.Signals) -> None:
        if self._process.is_alive():
            os.kill(self.pid, number)

    async def ended(self) -> None:
        """Wait until the process has ended."""
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(self._process.sentinel, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(self._process.sentinel)
        self._process.join()


class Nodes:
    """Starts processes and ends those that still run."""

    def __init__(self, url: str):
        self._url = url
        self._nodes: list[Node] = []
        self.notes = Notes(url)

    async def start(self, name: str, *workers: str, **spec: Any) -> Node:
        """Start a process with workers, and wait until it is on the channel."""
        node = Node(self._url, {"name": name, "workers": workers, **spec})
        self._nodes.append(node)
        await self.notes.next("ready", name=name)
        return node

    async def end(self, *nodes: Node) -> None:
        """End processes in good order."""
        for node in nodes:
            node.send(signal.SIGTERM)
        for node in nodes:
            await node.ended()

    async def end_all(self) -> None:
        """End in good order those that still run."""
        await self.end(*self._nodes)

    async def close(self) -> None:
        for node in self._nodes:
            node.send(signal.SIGKILL)
        for node in self._nodes:
            await node.ended()
        await self.notes.close()


@pytest.fixture
async def nodes(redis_server: EmbeddedRedis) -> AsyncIterator[Nodes]:
    nodes = Nodes(redis_server.url)
    yield nodes
    await nodes.close()
