"""One connection to the server, which comes back after it has broken."""

import asyncio

import pytest
from redis.asyncio import Redis
from redis_support import redis, redis_server

from pipecat_jobs.bus.redis import EmbeddedRedis
from pipecat_jobs.bus.redis.link import Link, UnreachableError

__all__ = ["redis", "redis_server"]


async def test_a_link_that_is_closed_while_it_connects_does_what_it_was_called_for(
    redis_server: EmbeddedRedis, redis: Redis, monkeypatch: pytest.MonkeyPatch
):
    connection_class = redis.connection_pool.connection_class
    connecting, go_on = asyncio.Event(), asyncio.Event()
    connect = connection_class.connect

    async def connect_slowly(connection: object) -> None:
        connecting.set()
        await go_on.wait()
        await connect(connection)

    monkeypatch.setattr(connection_class, "connect", connect_slowly)
    link = Link(redis, timeout=5)
    calling = asyncio.create_task(link.call(("PING",)))
    await connecting.wait()
    await link.close()
    go_on.set()
    assert await calling == [b"PONG"]
    await link.close()


async def test_a_link_that_is_closed_while_it_waits_says_so_and_opens_another(
    redis_server: EmbeddedRedis, redis: Redis
):
    link = Link(redis, timeout=5)
    waiting = asyncio.create_task(link.call(("BLPOP", "nothing", 0)))
    while not int((await redis.info("clients"))["blocked_clients"]):  # noqa: ASYNC110
        await asyncio.sleep(0)
    await link.close()
    with pytest.raises(UnreachableError):
        await waiting
    assert await link.call(("PING",)) == [b"PONG"]
    await link.close()
