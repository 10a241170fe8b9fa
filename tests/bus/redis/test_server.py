"""``RedisStreamsBus``: what happens to jobs when the server, or the connection to it, fails."""

import asyncio
import contextlib
import os
import signal
from pathlib import Path

import pytest
from redis.asyncio import Redis
from support.bot_process import free_port
from support.redis.processes import (
    LEASE,
    LONG_LEASE,
    Pair,
    ShortLeaseMember,
    assert_nothing_remains,
    pid_of,
    process_of,
    proxy,
    redis,
    redis_server,
    until,
    until_async,
    wait_exit,
)
from support.redis.script import Process, script
from support.tcp_proxy import TcpProxy
from support.workers import Responder

from pipecat_jobs import BusFullError, BusUnavailableError, JobTimeoutError, WorkerLostError
from pipecat_jobs.bus.redis import EmbeddedRedis

__all__ = ["proxy", "redis", "redis_server", "script"]

#: The kinds of keys that record which process does which job.
BOOKS = (b"proc",)


async def kill(server: EmbeddedRedis) -> None:
    pid = await pid_of(server)
    os.kill(pid, signal.SIGKILL)
    await wait_exit(pid)


# -- the server restarts -------------------------------------------------------------------------


async def test_a_restart_that_keeps_the_data_loses_nothing(tmp_path: Path):
    server = EmbeddedRedis(folder=tmp_path, persistent=True)
    await server.start()
    async with Pair(server.url, server.url) as pair:
        held = pair.ask("wait")
        await pair.worker.started.get()
        await kill(server)
        await server.stop()
        # This is longer than any lease: only the time that the server runs counts.
        await asyncio.sleep(2 * LEASE)
        sent_meanwhile = [pair.ask("echo", payload={"number": number}) for number in range(20)]
        pair.worker.release.set()
        await server.start()
        assert await held == {"from": "responder"}
        responses = [await each for each in sent_meanwhile]
        assert [response["payload"]["number"] for response in responses] == list(range(20))
        assert len(pair.worker.ran) == 21
        assert pair.asking.bus.stats.expulsions == pair.working.bus.stats.expulsions == 0
    await server.stop()


async def test_jobs_that_a_restart_without_persistence_forgot_end_as_lost(tmp_path: Path):
    server = EmbeddedRedis(folder=tmp_path)
    await server.start()
    async with Pair(server.url, server.url) as pair:
        held = pair.ask("wait")
        await pair.worker.started.get()
        await kill(server)
        await server.stop()
        sent_meanwhile = pair.ask("echo", payload={"x": 1})
        await server.start()
        with pytest.raises(WorkerLostError, match=r"its lease|has lost it"):
            await held
        # The process of the worker is stopped too, and both are resumed together.
        await until(lambda: pair.worker.cancelled)
        assert (await sent_meanwhile)["payload"] == {"x": 1}
        assert (await pair.ask("echo", payload={"x": 2}))["payload"] == {"x": 2}
        assert "responder" in pair.asking.runner.registry
        async with Redis.from_url(server.url, decode_responses=True) as redis:
            await redis.script_flush()
            assert (await pair.ask("echo", payload={"x": 3}))["payload"] == {"x": 3}
    await server.stop()


async def test_flushing_the_server_ends_jobs_as_lost(redis_server: EmbeddedRedis, redis: Redis):
    async with Pair(redis_server.url, redis_server.url) as pair:
        held = pair.ask("wait")
        await pair.worker.started.get()
        await redis.flushall()
        with pytest.raises(WorkerLostError):
            await held
        await until(lambda: pair.asking.bus.stats.expulsions and pair.working.bus.stats.expulsions)
        assert (await pair.ask("echo", payload={"x": 1}))["payload"] == {"x": 1}
    await assert_nothing_remains(redis)


async def test_a_job_that_the_server_forgot_ends_as_lost(redis_server: EmbeddedRedis, redis: Redis):
    async with Pair(redis_server.url, redis_server.url) as pair:
        held = pair.ask("wait")
        await pair.worker.started.get()
        await pair.forget_jobs(redis)
        pair.asking.bus.audit()
        with pytest.raises(WorkerLostError, match="the server has lost it"):
            await held


async def test_the_slot_of_a_job_that_the_server_forgot_is_free_again(
    redis_server: EmbeddedRedis, redis: Redis
):
    async with Pair(redis_server.url, redis_server.url, room=2) as pair:
        held = [pair.ask("wait") for _ in range(3)]
        for _ in range(2):
            await pair.worker.started.get()
        await pair.forget_jobs(redis)
        pair.asking.bus.audit()
        lost = await asyncio.gather(*held, return_exceptions=True)
        assert {type(error) for error in lost} == {WorkerLostError}
        waiting = pair.ask("wait")
        pair.worker.release.set()
        await until(lambda: pair.worker.active_jobs == {})
        await pair.working.bus._outbox.wait_until_empty()
        pair.working.bus.audit()
        assert (await waiting) == {"from": "responder"}


async def test_a_response_that_the_server_forgot_is_sent_again(redis_server: EmbeddedRedis):
    """As after a fail-over to a replica that had not received the response yet."""
    async with (
        Redis.from_url(redis_server.url) as raw,
        TcpProxy(redis_server.url) as proxy,
        Pair(proxy.url, redis_server.url) as pair,
        contextlib.AsyncExitStack() as later,
    ):
        held = pair.ask("wait")
        await pair.worker.started.get()
        other = Responder()
        await later.enter_async_context(ShortLeaseMember(redis_server.url, other))
        keys = [key for key in await raw.keys() if key.split(b":")[2] in BOOKS]
        before = {key: await raw.dump(key) for key in keys}
        # The response is on the server, and the requester has not read it.
        await pair.asking.wait_until_sent()
        proxy.block()
        pair.worker.release.set()
        await until(lambda: pair.worker.active_jobs == {})
        await pair.working.wait_until_sent()
        for key, value in before.items():
            await raw.restore(key, 60_000, value, replace=True)
        for key in await raw.keys("*:in:*:d"):
            await raw.xtrim(key, maxlen=0)
        proxy.reset()
        proxy.unblock()
        pair.working.bus.audit()
        await other.started.get()
        other.release.set()
        assert (await held) == {"from": "responder"}


async def test_a_server_that_is_not_running_is_an_error_at_the_start():
    member = ShortLeaseMember(f"redis://127.0.0.1:{free_port()}", start_timeout=0.3)
    with pytest.raises(BusUnavailableError, match="check the URL"):
        await member.runner.run()


async def test_a_server_that_never_replies_is_an_error_at_the_start(proxy: TcpProxy):
    proxy.block()
    with pytest.raises(BusUnavailableError, match="does not answer"):
        await ShortLeaseMember(proxy.url, start_timeout=0.2).runner.run()


async def test_a_wrong_password_is_an_error_at_the_start_that_says_so():
    async with EmbeddedRedis(port=free_port()) as server:
        address = server.url.rpartition("@")[2]
        member = ShortLeaseMember(f"redis://:wrong@{address}", start_timeout=0.3)
        with pytest.raises(BusUnavailableError, match=r"invalid|WRONGPASS") as caught:
            await member.runner.run()
        assert caught.value.cause


async def test_after_a_fail_over_jobs_go_through_the_new_primary():
    async with (
        EmbeddedRedis(start_timeout=100.0) as old,
        EmbeddedRedis(start_timeout=100.0) as new_primary,
        Redis.from_url(old.url) as redis,
        TcpProxy(old.url) as proxy,
        Pair(proxy.url, proxy.url) as pair,
    ):
        assert await pair.ask("echo")
        held = pair.ask("wait")
        await pair.worker.started.get()
        # Existing connections stay open, and new ones reach the other server.
        proxy.leads_to(new_primary.url)
        await redis.replicaof("127.0.0.1", 1)
        with pytest.raises(WorkerLostError):
            await held
        assert await pair.ask("echo")
        assert pair.working.bus.stats.reconnects == pair.asking.bus.stats.reconnects == 1


# -- the connection to the server ----------------------------------------------------------------


@pytest.mark.parametrize("end", ["requester", "worker"])
async def test_connections_that_are_cut_in_mid_traffic_lose_and_repeat_nothing(
    redis_server: EmbeddedRedis, proxy: TcpProxy, redis: Redis, end: str
):
    urls = (proxy.url, redis_server.url) if end == "requester" else (redis_server.url, proxy.url)
    async with Pair(*urls, lease=LONG_LEASE) as pair:
        over = asyncio.Event()
        asked: list[int] = []

        async def keep_asking(first: int) -> None:
            number = first
            while not over.is_set():
                response = await pair.ask("echo", payload={"number": number})
                assert response["payload"] == {"number": number}
                asked.append(number)
                number += 100

        asking = [asyncio.create_task(keep_asking(first)) for first in range(10)]
        for _ in range(10):
            before = len(asked)
            await until(lambda before=before: len(asked) > before + 5)
            proxy.reset()
        over.set()
        await asyncio.gather(*asking)
        assert len(pair.worker.ran) == len(set(pair.worker.ran)) == len(asked)
    await assert_nothing_remains(redis)


async def test_requests_whose_receipt_was_lost_are_not_sent_twice(
    redis_server: EmbeddedRedis, proxy: TcpProxy
):
    async with Pair(proxy.url, redis_server.url) as pair:
        for number in range(5):
            await pair.asking.wait_until_sent()
            proxy.swallows_replies = True
            asking = pair.ask("echo", payload={"number": number})
            await until(lambda number=number: len(pair.worker.ran) == number + 1)
            proxy.swallows_replies = False
            proxy.reset()
            assert (await asking)["payload"] == {"number": number}
        assert len(pair.worker.ran) == 5
        assert pair.asking.bus.stats.reconnects >= 4


async def test_a_slow_network_delays_jobs_and_fails_none(
    redis_server: EmbeddedRedis, proxy: TcpProxy
):
    async with Pair(proxy.url, redis_server.url) as pair:
        proxy.delay = 0.1
        responses = [await each for each in [pair.ask("echo", payload={"n": n}) for n in range(20)]]
        assert [response["payload"]["n"] for response in responses] == list(range(20))
        chunks = []
        async with pair.requester.job(
            "responder", name="count", payload={"to": 20}, timeout=30
        ) as j:
            async for event in j:
                chunks.append(event.data)
        assert [chunk["number"] for chunk in chunks if chunk] == list(range(20))
        assert pair.asking.bus.stats.expulsions == 0


async def test_a_process_that_is_disconnected_for_longer_than_its_lease_loses_its_jobs(
    redis_server: EmbeddedRedis, proxy: TcpProxy
):
    async with Pair(redis_server.url, proxy.url) as pair:
        held = pair.ask("wait")
        await pair.worker.started.get()
        proxy.block()
        with pytest.raises(WorkerLostError, match="no process that may run it came"):
            await held
        proxy.unblock()
        proxy.reset()
        await until(lambda: pair.worker.cancelled)
        await pair.asking.wait_until_known("responder")
        assert (await pair.ask("echo", payload={"x": 1}))["payload"] == {"x": 1}


async def test_a_cancel_while_the_server_is_down_stops_the_request_from_being_sent(
    redis_server: EmbeddedRedis, proxy: TcpProxy
):
    async with Pair(proxy.url, redis_server.url) as pair:
        await pair.asking.wait_until_sent()
        proxy.block()
        first = pair.ask("echo")
        await until(lambda: pair.asking.unsent == 1)
        second = pair.requester.job("responder", name="echo", timeout=0.2)
        with pytest.raises(JobTimeoutError):
            async with second:
                pass
        proxy.unblock()
        await first
        await pair.ask("echo")
        assert len(pair.worker.ran) == 2


async def test_more_messages_than_the_outbox_keeps_is_an_error_at_the_sender(
    redis_server: EmbeddedRedis, proxy: TcpProxy
):
    async with Pair(proxy.url, redis_server.url, outbox_limit=3) as pair:
        await pair.asking.wait_until_sent()
        proxy.block()
        asking = [pair.ask("echo") for _ in range(3)]
        await until(lambda: pair.asking.unsent == 3)
        with pytest.raises(Exception, match="3 messages wait") as caught:
            await pair.ask("echo")
        assert isinstance(caught.value.__cause__, BusFullError)
        proxy.unblock()
        await asyncio.gather(*asking)


async def test_messages_arrive_soon_after_a_connection_hung_silently(
    redis_server: EmbeddedRedis, proxy: TcpProxy
):
    async with Pair(proxy.url, redis_server.url) as pair:
        await pair.asking.wait_until_sent()
        proxy.swallows_replies = True
        asking = pair.ask("echo", payload={"x": 1})
        await until(lambda: pair.worker.ran)
        # Connections made before now stay unusable; new ones work.
        proxy.forsake()
        proxy.swallows_replies = False
        began = asyncio.get_running_loop().time()
        assert (await asking)["payload"] == {"x": 1}
        assert asyncio.get_running_loop().time() - began < 5


async def test_a_lease_is_kept_over_another_connection_when_one_hangs(
    redis_server: EmbeddedRedis, proxy: TcpProxy, redis: Redis
):
    lease = 2.0
    async with (
        ShortLeaseMember(redis_server.url, lease=lease),
        ShortLeaseMember(proxy.url, Responder(), lease=lease) as member,
    ):
        process = await process_of(redis, "responder")

        async def lease_ends() -> float:
            return await redis.zscore("pipecat-jobs:{pipecat}:members", process) or 0

        proxy.forsake()
        before = await lease_ends()

        async def is_renewed() -> bool:
            return await lease_ends() > before + lease * 1000 / 2 or member.bus.stats.expulsions

        await until_async(is_renewed)
        assert member.bus.stats.expulsions == 0
        proxy.reset()


async def test_a_process_with_too_many_unread_messages_is_declared_dead(
    redis_server: EmbeddedRedis, proxy: TcpProxy, script: Redis
):
    redis = script
    async with Pair(redis_server.url, proxy.url) as pair:
        held = pair.ask("wait")
        await pair.worker.started.get()
        piled = await process_of(redis, "responder")
        proxy.block()
        sender = await Process(redis, "sender", channel="pipecat", takeover=LEASE, inbox=5).join()
        for _ in range(10):
            await sender.call_once("route", "d", "responder", "hello", "0")
        assert not await redis.keys(f"*{piled}*")
        await sender.call("leave")
        with pytest.raises(WorkerLostError):
            await held
        proxy.unblock()
        proxy.reset()
        await until(lambda: pair.working.bus.stats.expulsions)
        await pair.asking.wait_until_known("responder")
