"""``RedisStreamsBus``: a process that joins a pool, before and while its workers start."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from pipecat.bus.messages import BusJobRequestMessage, BusMessage
from redis.asyncio import Redis
from redis_support import Member, redis, redis_server, until_async
from support import Answerer, Asker

from pipecat_jobs.bus.redis import EmbeddedRedis

__all__ = ["redis", "redis_server"]

HOSTS, NAMES = (f"pipecat-jobs:{{pipecat}}:{key}:answerer" for key in ("hosts", "names"))


class SlowToStart(Answerer):
    """A worker whose start takes until the test lets it go on."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = asyncio.Event()

    async def start(self) -> None:
        await self.go_on.wait()
        await super().start()


class Undeliverable(Answerer):
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
    """A process on the channel, whose worker has not started; there are so many that have one."""
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
    asker, worker = Asker(), SlowToStart()
    async with (
        Member(redis_server.url, asker) as member,
        starting(redis_server.url, worker, redis, 1),
    ):
        # Messages that are not requests reach it already.
        assert await redis.hlen(HOSTS) == 0
        worker.go_on.set()
        await member.knows("answerer")
        assert await asker.ask("answerer", "echo")
        assert await redis.hlen(HOSTS) == 1


async def test_a_process_that_starts_takes_no_request_from_its_pool(
    redis_server: EmbeddedRedis, redis: Redis
):
    asker, first, second = Asker(), Answerer(), SlowToStart()
    async with (
        Member(redis_server.url, asker) as member,
        Member(redis_server.url, first, room=1),
    ):
        await member.knows("answerer")
        running = asyncio.create_task(asker.ask("answerer", "wait"))
        await first.started.get()
        async with starting(redis_server.url, second, redis, 2, room=1) as late:
            waiting = asyncio.create_task(asker.ask("answerer", "wait"))
            await asyncio.sleep(0)
            await member.sent()
            await late.caught_up()
            assert second.ran == []
            second.go_on.set()
            second.release.set()
            assert await waiting == {"from": "answerer"}
            assert len(second.ran) == 1
        first.release.set()
        await running


async def test_a_request_that_its_worker_raises_at_goes_to_another_process(
    redis_server: EmbeddedRedis,
):
    asker, worker = Asker(), Answerer()
    async with (
        Member(redis_server.url, asker) as member,
        Member(redis_server.url, undeliverable := Undeliverable()) as failing,
    ):
        await member.knows("answerer")
        asking = asyncio.create_task(asker.ask("answerer", "echo"))
        await undeliverable.raised.wait()
        async with Member(redis_server.url, worker):
            assert (await asking)["from"] == "answerer"
        assert len(worker.ran) == 1
        assert failing.bus._post.ledger.all_held() == []
