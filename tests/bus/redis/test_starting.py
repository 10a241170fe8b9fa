"""``RedisStreamsBus``: a process that joins a pool, before and while its workers start."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pipecat.bus.messages import BusActivateWorkerMessage, BusJobRequestMessage, BusMessage
from redis.asyncio import Redis
from support.bot_process import free_port
from support.redis.processes import Member, redis, redis_server, server_with, until, until_async
from support.tcp_proxy import TcpProxy
from support.workers import Requester, Responder, cancelled

from pipecat_jobs import BusUnavailableError, RoutedBus, WorkerNotReadyError
from pipecat_jobs.bus.redis import EmbeddedRedis

__all__ = ["redis", "redis_server"]

HOSTS, NAMES = (f"pipecat-jobs:{{pipecat}}:{key}:responder" for key in ("hosts", "names"))


class SlowToStart(Responder):
    """A worker whose start takes until the test releases it."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = asyncio.Event()

    async def start(self) -> None:
        await self.go_on.wait()
        await super().start()


class Undeliverable(Responder):
    """A worker that raises at every request."""

    def __init__(self) -> None:
        super().__init__()
        self.raised = asyncio.Event()

    async def on_bus_message(self, message: BusMessage) -> None:
        if isinstance(message, BusJobRequestMessage):
            self.raised.set()
            raise ValueError("not today")
        await super().on_bus_message(message)


@contextlib.asynccontextmanager
async def starting(
    url: str, worker: SlowToStart, redis: Redis, processes: int, **options: Any
) -> AsyncIterator[Member]:
    """A process whose worker has not started, on a channel with this many processes."""
    member = Member(url, worker, **options)

    async def is_reached() -> bool:
        return await redis.scard(NAMES) == processes

    await member.runner.add_workers(worker)
    running = asyncio.create_task(member.runner.run(auto_end=False))
    try:
        await until_async(is_reached)
        yield member
    finally:
        worker.go_on.set()
        await member.runner.cancel()
        await running


async def test_a_worker_is_offered_to_other_processes_once_it_has_started(
    redis_server: EmbeddedRedis, redis: Redis
):
    requester, worker = Requester(), SlowToStart()
    async with (
        Member(redis_server.url, requester) as member,
        starting(redis_server.url, worker, redis, 1),
    ):
        # Messages that are not requests already reach it.
        assert await redis.hlen(HOSTS) == 0
        worker.go_on.set()
        await member.wait_until_known("responder")
        assert await requester.ask("responder", "echo")
        assert await redis.hlen(HOSTS) == 1


async def test_a_process_that_starts_takes_no_request_from_its_pool(
    redis_server: EmbeddedRedis, redis: Redis
):
    requester, first, second = Requester(), Responder(), SlowToStart()
    async with (
        Member(redis_server.url, requester) as member,
        Member(redis_server.url, first, room=1),
    ):
        await member.wait_until_known("responder")
        running = asyncio.create_task(requester.ask("responder", "wait"))
        await first.started.get()
        async with starting(redis_server.url, second, redis, 2, room=1) as late:
            waiting = asyncio.create_task(requester.ask("responder", "wait"))
            await asyncio.sleep(0)
            await member.wait_until_sent()
            await late.wait_until_caught_up()
            assert second.ran == []
            second.go_on.set()
            second.release.set()
            assert await waiting == {"from": "responder"}
            assert len(second.ran) == 1
        first.release.set()
        await running


async def test_a_request_whose_delivery_raises_goes_to_another_process(
    redis_server: EmbeddedRedis,
):
    requester, worker = Requester(), Responder()
    async with (
        Member(redis_server.url, requester) as member,
        Member(redis_server.url, undeliverable := Undeliverable()) as failing,
    ):
        await member.wait_until_known("responder")
        asking = asyncio.create_task(requester.ask("responder", "echo"))
        await undeliverable.raised.wait()
        async with Member(redis_server.url, worker):
            assert (await asking)["from"] == "responder"
        assert len(worker.ran) == 1
        assert failing.bus._router.open_jobs.list_held() == []


@pytest.mark.parametrize("timeout", [None, 60])
async def test_a_job_asked_on_a_bus_that_cannot_start_ends_with_its_error(timeout: float | None):
    member = Member(f"redis://127.0.0.1:{free_port()}", requester := Requester(), start_timeout=0.3)
    await member.runner.add_workers(requester)
    asking = asyncio.create_task(requester.ask("responder", "echo", timeout=timeout))
    await asyncio.sleep(0)
    with pytest.raises(BusUnavailableError):
        await member.runner.run()
    for job in (asking, requester.ask("responder", "echo", timeout=timeout)):
        with pytest.raises(WorkerNotReadyError, match="could not be reached within 0") as late:
            await job
        assert isinstance(late.value.__cause__, BusUnavailableError)
    assert requester.job_groups == {}


async def test_a_bus_that_is_cancelled_while_it_starts_ends_the_jobs_that_wait_for_it():
    async with asyncio.timeout(100):
        member = Member(
            f"redis://127.0.0.1:{free_port()}", requester := Requester(), start_timeout=60
        )
        await member.runner.add_workers(requester)
        asking = asyncio.create_task(requester.ask("responder", "echo"))
        running = asyncio.create_task(member.runner.run())
        await until(lambda: "connecting to" in (member.bus.find_problem() or ""))
        await cancelled(running)
        with pytest.raises(WorkerNotReadyError, match="cancelled while it started"):
            await asking


async def test_a_bus_that_starts_at_the_second_try_sends_earlier_requests(tmp_path: Path):
    port = free_port()
    member = Member(
        f"redis://127.0.0.1:{port}", requester := Requester(), Responder(), start_timeout=0.3
    )
    await member.runner.add_workers(*member.workers)
    with pytest.raises(BusUnavailableError):
        await member.runner.run()
    with pytest.raises(WorkerNotReadyError):
        await requester.ask("responder", "echo")
    async with server_with(tmp_path, port=port):
        running = asyncio.create_task(member.runner.run(auto_end=False))
        await until(lambda: member.bus.find_problem() is None)
        assert (await requester.ask("responder", "echo"))["from"] == "responder"
        await member.runner.cancel()
        await running


async def test_an_error_about_a_missing_worker_says_whether_the_server_is_down(
    redis_server: EmbeddedRedis,
):
    async with (
        TcpProxy(redis_server.url) as proxy,
        Member(proxy.url, requester := Requester()) as member,
    ):
        with pytest.raises(WorkerNotReadyError, match=r"known workers: 'requester'$"):
            await requester.ask("nobody", timeout=0.2)
        proxy.block()
        proxy.reset()
        await member.bus.send(BusActivateWorkerMessage(source="requester", target="nobody"))
        await until(member.bus.find_problem)
        with pytest.raises(WorkerNotReadyError, match="the Redis server is away: "):
            await requester.ask("nobody", timeout=0.2)
        proxy.unblock()


async def test_an_error_says_that_the_bus_was_not_started():
    bus = RoutedBus()
    assert "has not started" in (bus.find_problem() or "")
    await bus.start()
    assert bus.find_problem() is None
    await bus.stop()
