"""One connection to the server, in good order and with failures."""

import asyncio

import pytest
from pipecat.bus.messages import BusJobRequestMessage
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError, ResponseError
from support.bot_process import free_port
from support.redis.processes import Member, redis_server, until_async
from support.tcp_proxy import TcpProxy
from support.workers import Responder

from pipecat_jobs.bus._distributed.engine import UnreachableError
from pipecat_jobs.bus.redis import EmbeddedRedis, process
from pipecat_jobs.bus.redis.link import Command, Link, Reply, _check_primary

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
        async with Redis.from_url(redis_server.url) as redis:

            async def is_alone() -> bool:
                return len(await redis.client_list()) == 1

            await until_async(is_alone)


async def test_calls_at_once_each_get_their_own_reply(redis_server: EmbeddedRedis):
    async with Redis.from_url(redis_server.url) as client:
        link = Link(client, timeout=5)
        words = [f"word {number}" for number in range(10)]
        replies = await asyncio.gather(*(link.call(("ECHO", word)) for word in words))
        assert [reply.decode() for [reply] in replies] == words
        await link.close()


async def test_a_call_that_takes_too_long_leaves_no_reply_to_the_next(redis_server: EmbeddedRedis):
    async with Redis.from_url(redis_server.url) as client:
        link = Link(client, timeout=0.1)
        with pytest.raises(UnreachableError, match="TimeoutError"):
            await link.call(("BLPOP", "nothing", 1))
        assert await link.call(("PING",)) == [b"PONG"]
        # Only a call that may take longer waits longer.
        assert await link.call(("BLPOP", "nothing", "0.2"), wait=5) == [None]
        await link.close()


async def test_a_link_does_not_send_the_health_checks_of_its_client(redis_server: EmbeddedRedis):
    """The client would check with PING and HELLO whether the server is up; a link must not."""
    async with Redis.from_url(
        redis_server.url, health_check_interval=0.000001, decode_responses=True, protocol=3
    ) as client:
        link = Link(client, timeout=5)
        for _ in range(3):
            assert await link.call(("ECHO", "word")) == [b"word"]
        [statistics] = await link.call(("INFO", "commandstats"))
        assert b"cmdstat_echo:calls=3" in statistics
        assert b"cmdstat_ping" not in statistics
        assert b"cmdstat_hello" not in statistics
        await link.close()


async def test_the_timeout_of_the_client_is_not_used(redis_server: EmbeddedRedis):
    async with Redis.from_url(redis_server.url, socket_timeout=0.05) as client:
        link = Link(client, timeout=5)
        assert await link.call(("BLPOP", "nothing", "0.2")) == [None]
        await link.close()


async def test_the_retry_setting_of_the_client_is_not_used():
    again = Retry(ConstantBackoff(60), 3, supported_errors=(Exception,))
    client = Redis.from_url(f"redis://127.0.0.1:{free_port()}", retry=again)
    link = Link(client, timeout=5)
    with pytest.raises(UnreachableError, match="connecting to 127"):
        await link.call(("PING",))
    await client.aclose()


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


async def test_an_error_of_the_server_is_a_reply_like_any_other(redis_server: EmbeddedRedis):
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


@pytest.mark.parametrize(
    "error",
    [
        ReadOnlyError("You can't write against a read only replica."),
        ResponseError("Error running script: @user_script: 1: -READONLY You can't write"),
    ],
)
def test_a_server_that_no_longer_takes_writes_is_unreachable(error: ResponseError):
    """Redis 7 and Redis 6 report it of a script with different errors."""
    with pytest.raises(RedisConnectionError, match="can't write"):
        _check_primary([b"ok", error])


def test_any_other_error_is_raised_to_the_caller():
    _check_primary([b"ok", ResponseError("wrong number of arguments"), None])


async def test_a_batch_is_no_larger_than_a_slow_connection_can_carry(
    redis_server: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(process, "_MOST_BYTES", 10_000)
    sizes: list[int] = []
    waits: list[float] = []
    async with Member(redis_server.url, Responder()) as member:
        await member.wait_until_caught_up()
        link = member.bus._process._sending
        call = link.call

        async def note(*commands: Command, wait: float = 0) -> list[Reply]:
            words = [each for command in commands if command[0] == "EVALSHA" for each in command]
            sizes.append(sum(map(len, map(str, words))))
            waits.append(wait)
            return await call(*commands, wait=wait)

        monkeypatch.setattr(link, "call", note)
        payload = {"text": "x" * 4_000}
        for number in range(20):
            await member.bus.send(
                BusJobRequestMessage(
                    source="requester", target="nobody", job_id=str(number), payload=payload
                )
            )
        await member.wait_until_sent()
    assert len(sizes) >= 6
    assert max(sizes) < 16_000
    # The call also gets the time that it needs.
    assert max(waits) >= 10_000 / process._SLOWEST
