"""Processes of a channel, simulated in this process or real, on a server of the tests."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
from pipecat.bus import WorkerBus
from pipecat.bus.network.redis import RedisBus
from pipecat.registry.types import WorkerReadyData
from pipecat.workers.base_worker import BaseWorker
from pipecat.workers.runner import WorkerRunner
from redis.asyncio import Redis

from pipecat_jobs.bus.redis import EmbeddedRedis, RedisStreamsBus
from pipecat_jobs.bus.redis.embedded import find_server
from support.bot_process import free_port
from support.tcp_proxy import TcpProxy
from support.workers import Requester, Responder

#: The channel of processes on Pipecat's own bus.
CHANNEL = "bots"
#: A lease in seconds that also a busy machine renews in time.
LONG_LEASE = 20.0
#: A lease in seconds whose end a test can wait for, and that is nearly always renewed in time.
LEASE = 1.0


@pytest.fixture
async def redis_server() -> AsyncIterator[EmbeddedRedis]:
    async with EmbeddedRedis(start_timeout=100.0) as server:
        yield server


@pytest.fixture
async def redis(redis_server: EmbeddedRedis) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_server.url, decode_responses=True) as redis:
        yield redis


class Process:
    """One process from the view of its bus, simulated in this process."""

    def __init__(self, bus: WorkerBus, *workers: BaseWorker, name: str | None = None):
        self.workers = workers
        self.runner = WorkerRunner(name=name, bus=bus, handle_sigint=False)

    async def __aenter__(self) -> Self:
        ready = asyncio.Event()
        self.runner.add_event_handler("on_ready", lambda _: ready.set())
        await self.runner.add_workers(*self.workers)
        self._running = asyncio.create_task(self.runner.run(auto_end=False))
        await self._or_ended(ready.wait())
        for worker in self.workers:
            await self.wait_until_known(worker.name)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.runner.cancel()
        await self._running

    async def _or_ended(self, waiting: Any) -> None:
        task = asyncio.ensure_future(waiting)
        await asyncio.wait({task, self._running}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            await self._running
            raise AssertionError("the runner has ended")

    async def wait_until_known(self, *names: str) -> None:
        """Wait until workers are in the registry, wherever they run."""
        for name in names:
            known = asyncio.Event()

            async def on_ready(data: WorkerReadyData, known: asyncio.Event = known) -> None:
                known.set()

            await self.runner.registry.watch(name, on_ready)
            await known.wait()

    async def wait_until_sent(self) -> None:
        """Wait until the server has all messages that this process has sent."""
        await self.bus._outbox.wait_until_empty()

    @property
    def unsent(self) -> int:
        """How many messages wait for the server."""
        return len(self.bus._outbox)

    async def wait_until_caught_up(self) -> None:
        """Wait until this process has read the messages that are in its inbox now."""
        await self.bus._router.wait_until_caught_up()

    async def wait_until_unknown(self, name: str) -> None:
        """Wait until a worker is out of the registry."""
        await until(lambda: name not in self.runner.registry)


class Member(Process):
    """One process on `RedisStreamsBus`."""

    def __init__(
        self,
        url: str | Redis | None,
        *workers: BaseWorker,
        name: str | None = None,
        **options: Any,
    ):
        self.bus = RedisStreamsBus(url, **{"lease": LONG_LEASE, "takeover": LEASE, **options})
        super().__init__(self.bus, *workers, name=name)


class ShortLeaseMember(Member):
    """A process whose death is noticed soon."""

    def __init__(self, url: str | Redis | None, *workers: BaseWorker, **options: Any):
        super().__init__(url, *workers, **{"lease": LEASE, **options})


class PubSubMember(Process):
    """One process of a channel on Pipecat's own bus."""

    def __init__(self, url: str, *workers: BaseWorker, **options: Any):
        self.redis = Redis.from_url(url, **options)
        super().__init__(RedisBus(redis=self.redis, channel=CHANNEL), *workers)

    async def __aexit__(self, *exception: Any) -> None:
        await super().__aexit__(*exception)
        await self.redis.aclose()


async def until(condition: Callable[[], object], *, timeout: float = 100.0) -> None:
    """Wait for a condition that no event signals."""

    async def check() -> object:
        return condition()

    await until_async(check, timeout=timeout)


async def until_async(
    condition: Callable[[], Awaitable[object]], *, timeout: float = 100.0
) -> None:
    """Wait for a condition that only the server can tell."""
    async with asyncio.timeout(timeout):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def process_of(redis: Redis, name: str) -> str:
    """The id of the one process that has a subscriber of that name."""
    [process] = await redis.smembers(f"pipecat-jobs:{{pipecat}}:names:{name}")
    return process


@contextlib.asynccontextmanager
async def server_with(folder: Path, *options: str, port: int | None = None) -> AsyncIterator[str]:
    """A server with other options, or on a given port."""
    # A node of a cluster also uses the port that is 10,000 higher.
    port = port or next(found for found in iter(free_port, 0) if found < 55_000)
    process = await asyncio.create_subprocess_exec(
        *(find_server(), "--port", str(port), "--bind", "127.0.0.1", "--save", ""),
        *("--dir", str(folder), *options),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        while b"eady to accept connections" not in (line := await process.stdout.readline()):
            assert line, "the server has not started"
        yield f"redis://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def assert_nothing_remains(redis: Redis) -> None:
    """Check that a clean end has left nothing on the server."""
    assert await redis.keys() == []


async def pid_of(server: EmbeddedRedis) -> int:
    async with Redis.from_url(server.url) as redis:
        return (await redis.info("server"))["process_id"]


async def wait_exit(pid: int) -> None:
    """Wait until a process has ended that may not be a child of this one."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop.add_reader(descriptor, ended.set_result, None)
    try:
        await ended
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


@pytest.fixture
async def proxy(redis_server: EmbeddedRedis) -> AsyncIterator[TcpProxy]:
    async with TcpProxy(redis_server.url) as proxy:
        yield proxy


class Pair:
    """A requester and a worker, each in its own process from the view of the channel."""

    def __init__(self, requester_url: str, worker_url: str, **options: Any):
        self.requester, self.worker = Requester(), Responder()
        self.asking = ShortLeaseMember(requester_url, self.requester, **options)
        self.working = ShortLeaseMember(worker_url, self.worker, **options)

    async def __aenter__(self) -> "Pair":
        await self.asking.__aenter__()
        await self.working.__aenter__()
        await self.asking.wait_until_known("responder")
        return self

    async def forget_jobs(self, redis: Redis) -> None:
        """Have the server lose the open requests, and nothing else."""
        process = f"pipecat-jobs:{{pipecat}}:proc:{self.asking.bus._process.id}"
        for field in await redis.hkeys(process):
            if field.startswith("job:"):
                await redis.hdel(process, field)

    async def __aexit__(self, *exc: Any) -> None:
        await self.working.__aexit__(*exc)
        await self.asking.__aexit__(*exc)

    def ask(self, name: str, **keywords: Any) -> asyncio.Task:
        return asyncio.create_task(self.requester.ask("responder", name, timeout=30, **keywords))
