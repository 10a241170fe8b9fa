"""``RedisStreamsBus``: a stream waits for the server, and for a reader in another process."""

import asyncio
import contextlib

import pytest
from pipecat.bus.messages import BusJobRequestMessage
from redis.asyncio import Redis
from support.redis.processes import Member, assert_nothing_remains, redis, redis_server, until
from support.tcp_proxy import TcpProxy
from support.workers import Requester, cancelled

from pipecat_jobs import BaseWorker, JobContext, JobEvent, job, job_attempt
from pipecat_jobs.bus.redis import EmbeddedRedis

__all__ = ["redis", "redis_server"]

#: Chunks of a stream that no reader slows down.
ALL = 3000


class Streamer(BaseWorker):
    """Streams as fast as flow control allows, and counts its chunks."""

    def __init__(self, name: str = "streamer"):
        super().__init__(name)
        self.sent = 0
        self.attempts: list[int] = []

    @job(name="count")
    async def count(self, message: BusJobRequestMessage):
        self.attempts.append(job_attempt(message))
        for number in range(ALL):
            yield {"number": number}
            self.sent += 1


async def still(streamer: Streamer, *members: Member) -> None:
    """Wait until a streamer sends no more, and all messages on their way have been read."""
    sent = -1
    while sent != streamer.sent:
        sent = streamer.sent
        for member in (*members, *members):
            await member.bus._router.wait_until_caught_up()


async def numbers(events: JobContext) -> list[int]:
    return [event.data["number"] async for event in events if event.type == JobEvent.STREAM_DATA]


async def test_a_stream_waits_for_a_slow_connection_to_the_server(
    redis_server: EmbeddedRedis, redis: Redis
):
    async with (
        Member(redis_server.url, requester := Requester()) as member,
        Member(redis_server.url, Streamer(), outbox_limit=20),
    ):
        await member.wait_until_known("streamer")
        async with requester.job("streamer", name="count", timeout=30) as j:
            assert await numbers(j) == list(range(ALL))
    await assert_nothing_remains(redis)


async def test_a_stream_waits_for_a_server_that_is_down(redis_server: EmbeddedRedis):
    async with (
        TcpProxy(redis_server.url) as proxy,
        Member(redis_server.url, requester := Requester()) as member,
        Member(proxy.url, streamer := Streamer(), lease=20.0, outbox_limit=20),
    ):
        await member.wait_until_known("streamer")
        async with requester.job("streamer", name="count", timeout=30) as j:
            assert (await anext(j)).type == JobEvent.STREAM_START
            proxy.block()
            proxy.reset()
            await until(lambda: streamer.sent)
            proxy.unblock()
            assert await numbers(j) == list(range(ALL))


async def test_a_stream_waits_for_a_reader_in_another_process(redis_server: EmbeddedRedis):
    async with (
        Member(redis_server.url, requester := Requester()) as member,
        Member(redis_server.url, streamer := Streamer()) as working,
    ):
        await member.wait_until_known("streamer")
        async with requester.job("streamer", name="count", timeout=30, unread_limit=10) as j:
            assert (await anext(j)).type == JobEvent.STREAM_START
            await still(streamer, member, working)
            assert 10 <= streamer.sent < ALL / 2
            assert (await anext(j)).data == {"number": 0}
            assert await numbers(j) == list(range(1, ALL))
        assert streamer.sent == ALL


async def test_leaving_the_block_resumes_a_worker_in_another_process(
    redis_server: EmbeddedRedis,
):
    async with (
        Member(redis_server.url, requester := Requester()) as member,
        Member(redis_server.url, streamer := Streamer()) as working,
    ):
        await member.wait_until_known("streamer")
        async with requester.job("streamer", name="count", timeout=30, unread_limit=10) as j:
            await anext(j)
            await still(streamer, member, working)
            assert streamer.sent < ALL / 2
        assert streamer.sent == ALL


async def test_a_stream_that_waits_for_its_reader_can_be_cancelled(redis_server: EmbeddedRedis):
    async with (
        Member(redis_server.url, requester := Requester()) as member,
        Member(redis_server.url, streamer := Streamer()) as working,
    ):
        await member.wait_until_known("streamer")
        reading = asyncio.Event()

        async def read_one() -> None:
            async with requester.job("streamer", name="count", unread_limit=10) as j:
                await anext(j)
                reading.set()
                await asyncio.Event().wait()

        asking = asyncio.create_task(read_one())
        await reading.wait()
        await still(streamer, member, working)
        await cancelled(asking)
        await until(lambda: streamer.active_jobs == {})
        assert streamer.sent < ALL / 2


async def test_a_process_that_takes_over_a_stream_waits_for_the_reader_too(
    redis_server: EmbeddedRedis,
):
    async with (
        Member(redis_server.url, requester := Requester()) as member,
        contextlib.AsyncExitStack() as later,
    ):
        first, second = Streamer(), Streamer()
        async with Member(redis_server.url, first) as working:
            await member.wait_until_known("streamer")
            asking = asyncio.create_task(_read_slowly(requester, opened := asyncio.Event()))
            await opened.wait()
            await still(first, member, working)
            assert first.sent < ALL / 2
            replacement = await later.enter_async_context(Member(redis_server.url, second))
            await working.bus.drain(timeout=0)
        await until(lambda: second.attempts == [2])
        await still(second, member, replacement)
        assert second.sent < ALL / 2
        await cancelled(asking)


async def _read_slowly(requester: Requester, opened: asyncio.Event) -> None:
    async with requester.job("streamer", name="count", unread_limit=10) as j:
        await anext(j)
        opened.set()
        await asyncio.Event().wait()


@pytest.mark.parametrize("secret", [None, "one that both know"])
async def test_a_stream_flows_with_and_without_signatures(
    redis_server: EmbeddedRedis, secret: str | None
):
    async with (
        Member(redis_server.url, requester := Requester(), secret=secret) as member,
        Member(redis_server.url, Streamer(), secret=secret) as working,
    ):
        await member.wait_until_known("streamer")
        async with requester.job("streamer", name="count", timeout=30, unread_limit=1) as j:
            assert await numbers(j) == list(range(ALL))
        assert member.bus.stats.garbage == working.bus.stats.garbage == 0
