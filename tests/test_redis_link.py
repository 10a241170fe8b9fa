"""One connection to the server, whatever becomes of it."""

import asyncio

import pytest
from redis.asyncio import Redis
from redis_support import redis_server, until_async
from tcp_proxy import TcpProxy

from pipecat_jobs.bus.redis import EmbeddedRedis
from pipecat_jobs.bus.redis.link import Link, UnreachableError

__all__ = ["redis_server"]


async def test_a_connection_closed_while_it_is_opened_is_not_used(redis_server: EmbeddedRedis):
    async with TcpProxy(redis_server.url) as proxy, Redis.from_url(proxy.url) as client:
        link = Link(client, timeout=5)
        proxy.block()
        calling = asyncio.create_task(link.call(("PING",)))
        await proxy.connected.wait()
        await link.close()
        proxy.unblock()
        with pytest.raises(UnreachableError):
            await calling
        assert await link.call(("PING",)) == [b"PONG"]
        await link.close()


async def test_a_call_that_is_cancelled_leaves_no_reply_to_the_next(redis_server: EmbeddedRedis):
    async with TcpProxy(redis_server.url) as proxy, Redis.from_url(proxy.url) as client:
        link = Link(client, timeout=5)
        assert await link.call(("PING",)) == [b"PONG"]
        calling = asyncio.create_task(link.call(("ECHO", "late"), wait=5))
        await asyncio.sleep(0)
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        assert await link.call(("ECHO", "mine")) == [b"mine"]
        await link.close()


async def test_an_error_of_the_server_is_a_reply_like_another(redis_server: EmbeddedRedis):
    async with Redis.from_url(redis_server.url) as client:
        link = Link(client, timeout=5)
        first, error, last = await link.call(("PING",), ("NONSENSE",), ("PING",))
        assert first == last == b"PONG"
        assert "unknown command" in str(error)
        await link.close()


async def test_a_link_that_is_closed_while_it_waits_says_so_and_opens_another(
    redis_server: EmbeddedRedis,
):
    async with Redis.from_url(redis_server.url) as redis:
        link = Link(redis, timeout=5)
        waiting = asyncio.create_task(link.call(("BLPOP", "nothing", 0)))

        async def waits() -> bool:
            return bool((await redis.info("clients"))["blocked_clients"])

        await until_async(waits)
        await link.close()
        with pytest.raises(UnreachableError):
            await waiting
        assert await link.call(("PING",)) == [b"PONG"]
        await link.close()
