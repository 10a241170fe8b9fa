"""The cost of a job between processes."""

import asyncio
import multiprocessing
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from loguru import logger
from pipecat.bus.bus import WorkerBus
from pipecat.bus.messages import BusJobRequestMessage
from pipecat.bus.network.redis import RedisBus
from pipecat.workers.runner import WorkerRunner
from redis.asyncio import Redis

from benchmarks.benchmark import Benchmark, Figure, Spread
from pipecat_jobs import BaseWorker, job
from pipecat_jobs.bus.redis import EmbeddedRedis, RedisStreamsBus

#: How many processes are on the channel: of the requester, of the worker, and idle ones.
_PROCESSES = (2, 10, 50)
#: Jobs in a row that make a sample of the round trip.
_JOBS = 20
#: Jobs that are open at once when throughput is measured.
_AT_ONCE = 100
#: The most deaths that are measured, because each takes as long as a lease.
_MOST_DEATHS = 10
#: Seconds of a lease that fifty processes can renew while they all start on one machine.
_LEASE = 15.0
_DEFAULT_LEASE = 1.5
#: Seconds for which commands of idle processes are counted.
_IDLE_FOR = 4.0

_BARE, _PIPECATS, _OURS = "XADD and XREAD alone", "ours on Pipecat's RedisBus", "RedisStreamsBus"

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["benchmarks.distributed"])


class _Worker(BaseWorker):
    def __init__(self, name: str, redis: Redis):
        super().__init__(name)
        self._redis = redis

    @job(name="echo")
    async def echo(self, message: BusJobRequestMessage) -> dict[str, Any]:
        return message.payload or {}

    @job(name="hold")
    async def hold(self, message: BusJobRequestMessage) -> dict[str, Any]:
        try:
            # The cancel may come before the reply to this command.
            await self._redis.rpush("started", os.getpid())
            await self._redis.blpop("gate")
        except asyncio.CancelledError:
            stopped = time.monotonic()
            await self._redis.rpush("stopped", stopped)
            raise
        return {}


def _connect(url: str) -> Redis:
    # Pipecat's bus takes a connection for each message that it sends at once, of which redis-py
    # allows 100 by default.
    return Redis.from_url(url, max_connections=10_000)


def _make_bus(subject: str, client: Redis, lease: float) -> WorkerBus:
    if subject == _OURS:
        return RedisStreamsBus(client, lease=lease)
    return RedisBus(redis=client, channel="pipecat")


async def _serve(subject: str, url: str, worker: str, lease: float) -> None:
    notes = Redis.from_url(url, db=1)
    bus = _make_bus(subject, _connect(url), lease)
    runner = WorkerRunner(bus=bus, handle_sigint=False, handle_sigterm=True)
    await runner.add_workers(_Worker(worker, notes))
    await runner.run(auto_end=False)


async def _echo(url: str) -> None:
    redis, last = Redis.from_url(url), b"0"
    while True:
        [(_, entries)] = await redis.xread({"there": last}, block=0)
        for _, fields in entries:
            await redis.xadd("back", fields)
        last = entries[-1][0]


def _process(subject: str, url: str, worker: str, lease: float) -> None:
    logger.remove()
    asyncio.run(_echo(url) if subject == _BARE else _serve(subject, url, worker, lease))


def _start(subject: str, url: str, worker: str, lease: float = _LEASE) -> Any:
    process = _FORKS.Process(target=_process, args=(subject, url, worker, lease), daemon=True)
    process.start()
    return process


@asynccontextmanager
async def _open_channel(
    subject: str, processes: int, lease: float = _LEASE
) -> AsyncIterator[tuple[BaseWorker, Redis, str]]:
    """Run a requester here, its worker in another process, and idle workers in further ones."""
    async with EmbeddedRedis() as server, _connect(server.url) as client:
        names = ["worker", *(f"idle-{number}" for number in range(processes - 2))]
        others = [_start(subject, server.url, name, lease) for name in names]
        requester, notes = BaseWorker("requester"), Redis.from_url(server.url, db=1)
        runner = WorkerRunner(bus=_make_bus(subject, client, lease), handle_sigint=False)
        await runner.add_workers(requester)
        running = asyncio.create_task(runner.run(auto_end=False))
        await _wait_until_known(runner, names)
        try:
            yield requester, notes, server.url
        finally:
            await runner.cancel()
            await running
            for process in others:
                process.kill()
                process.join()
            await notes.aclose()


async def _wait_until_known(runner: WorkerRunner, names: list[str]) -> None:
    for name in names:
        known = asyncio.Event()

        async def on_ready(_: object, known: asyncio.Event = known) -> None:
            known.set()

        await runner.registry.watch(name, on_ready)
        await known.wait()


async def _measure(once: Callable[[], Awaitable[object]], times: int) -> float:
    began = time.monotonic()
    for _ in range(times):
        await once()
    return 1000 * (time.monotonic() - began) / times


async def _measure_bare(rounds: int) -> list[Figure]:
    async with EmbeddedRedis() as server, Redis.from_url(server.url) as redis:
        process = _start(_BARE, server.url, "")
        last = b"0"

        async def there_and_back() -> None:
            nonlocal last
            await redis.xadd("there", {"b": b"x" * 200})
            [(_, [(last, _)])] = await redis.xread({"back": last}, block=0)

        await _measure(there_and_back, _JOBS)
        samples = [await _measure(there_and_back, _JOBS) for _ in range(rounds)]
        process.kill()
        process.join()
    return [Figure("there and back, 2 processes", _BARE, "ms", Spread.of(samples))]


async def _measure_round_trips(subject: str, processes: int, rounds: int) -> list[Figure]:
    async with _open_channel(subject, processes) as (requester, *_):

        async def one_job() -> None:
            async with requester.job("worker", name="echo", payload={"text": "hello"}, timeout=30):
                pass

        await _measure(one_job, _JOBS)
        samples = [await _measure(one_job, _JOBS) for _ in range(rounds)]
        rates: list[float] = []
        for _ in range(max(rounds // 5, 1)):
            began = time.monotonic()
            await asyncio.gather(*(one_job() for _ in range(_AT_ONCE)))
            rates.append(_AT_ONCE / (time.monotonic() - began))
    where = f"{processes} processes"
    return [
        Figure(f"one job, {where}", subject, "ms", Spread.of(samples)),
        Figure(f"{_AT_ONCE} jobs at once, {where}", subject, "jobs/s", Spread.of(rates)),
    ]


async def _measure_cancels(rounds: int) -> list[Figure]:
    samples: list[float] = []
    async with _open_channel(_OURS, 2) as (requester, notes, _):

        async def held() -> None:
            async with requester.job("worker", name="hold"):
                pass

        for _ in range(rounds):
            holding = asyncio.create_task(held())
            await notes.blpop(["started"])
            began = time.monotonic()
            holding.cancel()
            _, stopped = await notes.blpop(["stopped"])
            samples.append(1000 * (float(stopped) - began))
            await asyncio.wait({holding})
    return [Figure("from cancelling to the handler", _OURS, "ms", Spread.of(samples))]


async def _measure_deaths(rounds: int) -> list[Figure]:
    samples: list[float] = []
    async with _open_channel(_OURS, 2, _DEFAULT_LEASE) as (requester, notes, url):
        spares: list[Any] = []
        for _ in range(min(rounds, _MOST_DEATHS)):
            holding: asyncio.Task[None] = asyncio.create_task(_hold(requester))
            _, pid = await notes.blpop(["started"])
            spares.append(_start(_OURS, url, "worker", _DEFAULT_LEASE))
            async with Redis.from_url(url) as redis:
                while await redis.hlen("pipecat-jobs:{pipecat}:hosts:worker") < 2:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            began = time.monotonic()
            os.kill(int(pid), signal.SIGKILL)
            await notes.blpop(["started"])
            await notes.rpush("gate", "open")
            await holding
            samples.append(time.monotonic() - began)
        for process in spares:
            process.kill()
            process.join()
    return [Figure("from SIGKILL to the answer from elsewhere", _OURS, "s", Spread.of(samples))]


async def _hold(requester: BaseWorker) -> None:
    async with requester.job("worker", name="hold"):
        pass


async def _measure_idle() -> list[Figure]:
    processes = 10
    async with (
        _open_channel(_OURS, processes, _DEFAULT_LEASE) as (_, _, url),
        Redis.from_url(url) as redis,
    ):
        before = await redis.info("stats")
        await asyncio.sleep(_IDLE_FOR)
        after = await redis.info("stats")
    commands = after["total_commands_processed"] - before["total_commands_processed"]
    per_second = Spread.of([commands / _IDLE_FOR / processes])
    return [Figure("an idle process", _OURS, "commands/s", per_second)]


async def _run(rounds: int) -> list[Figure]:
    figures = await _measure_bare(rounds)
    for processes in _PROCESSES:
        for subject in (_OURS, _PIPECATS):
            figures += await _measure_round_trips(subject, processes, rounds)
    return [
        *figures,
        *await _measure_cancels(rounds),
        *await _measure_deaths(rounds),
        *await _measure_idle(),
    ]


DISTRIBUTED = Benchmark(
    name="distributed",
    title="one worker requests a job of another in another process",
    method=(
        f"From the call to the response; the mean of {_JOBS} jobs in a row is one sample. The "
        "Redis server and all processes share this machine, so the work of all of them counts as "
        "delay. Persistence is off. A cancel is measured from the cancellation of the requester's "
        "task to the cancellation of the handler in the other process."
    ),
    rounds=20,
    run=_run,
)
