"""Processes of a channel, in this process or in their own, on a server of the tests' own."""

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
from support.workers import Answerer, Asker

#: The channel of those on Pipecat's own bus.
CHANNEL = "bots"
#: A lease that a busy machine keeps.
CALM = 20.0
#: One that a test can wait for, and that it nearly always keeps.
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
    """One process on a bus, as far as the bus can tell."""

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
            await self.knows(worker.name)
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

    async def knows(self, *names: str) -> None:
        """Wait until workers are in the registry, wherever they run."""
        for name in names:
            known = asyncio.Event()

            async def on_ready(data: WorkerReadyData, known: asyncio.Event = known) -> None:
                known.set()

            await self.runner.registry.watch(name, on_ready)
            await known.wait()

    async def sent(self) -> None:
        """Wait until the server has what this process has sent."""
        await self.bus._outbox.empty()

    @property
    def unsent(self) -> int:
        """How many messages wait for the server."""
        return len(self.bus._outbox)

    async def caught_up(self) -> None:
        """Wait until this process has read what is in its inbox by now."""
        await self.bus._router.caught_up()

    async def forgets(self, name: str) -> None:
        """Wait until a worker is out of the registry."""
        await until(lambda: name not in self.runner.registry)


class Member(Process):
    """One process of a channel of ours."""

    def __init__(
        self,
        url: str | Redis | None,
        *workers: BaseWorker,
        name: str | None = None,
        **options: Any,
    ):
        self.bus = RedisStreamsBus(url, **{"lease": CALM, "takeover": LEASE, **options})
        super().__init__(self.bus, *workers, name=name)


class Mortal(Member):
    """One whose death is soon noticed."""

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


async def until(true: Callable[[], object], *, timeout: float = 100.0) -> None:
    """Wait for what no event tells of."""

    async def now() -> object:
        return true()

    await until_async(now, timeout=timeout)


async def until_async(true: Callable[[], Awaitable[object]], *, timeout: float = 100.0) -> None:
    """Wait for what only the server can say."""
    async with asyncio.timeout(timeout):
        while not await true():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def process_of(redis: Redis, name: str) -> str:
    """The id of the one process that has a subscriber of that name."""
    [process] = await redis.smembers(f"pipecat-jobs:{{pipecat}}:names:{name}")
    return process


@contextlib.asynccontextmanager
async def server_with(folder: Path, *options: str, port: int | None = None) -> AsyncIterator[str]:
    """A server with options of its own, or on a port of its own."""
    # A node of a cluster takes the port that is 10,000 higher as well.
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


async def nothing_remains(redis: Redis) -> None:
    """Check that a clean end has left nothing on the server."""
    assert await redis.keys() == []


async def pid_of(server: EmbeddedRedis) -> int:
    async with Redis.from_url(server.url) as redis:
        return (await redis.info("server"))["process_id"]


async def gone(pid: int) -> None:
    """Wait for a process that may be no child of this one."""
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
    """A requester and a worker, each in a process of its own as far as the channel can tell."""

    def __init__(self, asker_url: str, worker_url: str, **options: Any):
        self.asker, self.worker = Asker(), Answerer()
        self.asking = Mortal(asker_url, self.asker, **options)
        self.working = Mortal(worker_url, self.worker, **options)

    async def __aenter__(self) -> "Pair":
        await self.asking.__aenter__()
        await self.working.__aenter__()
        await self.asking.knows("answerer")
        return self

    async def forget_jobs(self, redis: Redis) -> None:
        """Have the server lose what was asked, and nothing else."""
        process = f"pipecat-jobs:{{pipecat}}:proc:{self.asking.bus._process.id}"
        for field in await redis.hkeys(process):
            if field.startswith("job:"):
                await redis.hdel(process, field)

    async def __aexit__(self, *exc: Any) -> None:
        await self.working.__aexit__(*exc)
        await self.asking.__aexit__(*exc)

    def ask(self, name: str, **keywords: Any) -> asyncio.Task:
        return asyncio.create_task(self.asker.ask("answerer", name, timeout=30, **keywords))
