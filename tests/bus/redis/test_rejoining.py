"""``RedisStreamsBus``: a process that was declared dead and joins again, and one that leaves."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from pipecat.bus.messages import BusActivateWorkerMessage
from redis.asyncio import Redis
from support.redis.processes import (
    Pair,
    ShortLeaseMember,
    assert_nothing_remains,
    proxy,
    redis,
    redis_server,
    until,
)
from support.tcp_proxy import TcpProxy
from support.workers import Responder

from pipecat_jobs import JobTimeoutError, WorkerLostError
from pipecat_jobs.bus._distributed.engine import Call, Lane, UnreachableError
from pipecat_jobs.bus.redis import EmbeddedRedis
from pipecat_jobs.bus.redis.link import Command, Reply
from pipecat_jobs.bus.redis.script import LOAD

__all__ = ["proxy", "redis", "redis_server"]


@pytest.fixture
async def member(redis_server: EmbeddedRedis) -> AsyncIterator[ShortLeaseMember]:
    async with ShortLeaseMember(redis_server.url, Responder()) as member:
        await member.bus._outbox.wait_until_empty()
        yield member


async def test_a_process_that_gets_no_receipt_for_joining_is_on_the_channel_once(
    member: ShortLeaseMember, redis: Redis, monkeypatch: pytest.MonkeyPatch
):
    """A second entry would get jobs, and its end would be reported for both."""
    process = member.bus._process
    assert process is not None

    async def lose_the_receipt(*commands: Command, wait: float = 0) -> list[Reply]:
        monkeypatch.undo()
        await process._sending.call(*commands, wait=wait)
        raise UnreachableError("no receipt")

    monkeypatch.setattr(process._sending, "call", lose_the_receipt)
    await redis.execute_command(*process._channel.call("leave", process.id, 0))
    await until(lambda: member.bus._roster is not None)
    assert await redis.zrange("pipecat-jobs:{pipecat}:members", 0, -1) == [process.id]


async def test_a_lease_renewed_while_the_process_joins_again_is_not_considered_lost(
    member: ShortLeaseMember, redis: Redis, monkeypatch: pytest.MonkeyPatch
):
    process = member.bus._process
    assert process is not None
    call, renew = process._sending.call, process._renewing.call
    joining, renewed = asyncio.Event(), asyncio.Semaphore(0)

    async def join_late(*commands: Command, wait: float = 0) -> list[Reply]:
        if commands[:1] == LOAD[:1] and not joining.is_set():
            joining.set()
            await renewed.acquire()
        return await call(*commands, wait=wait)

    async def note_renewal(*commands: Command) -> list[Reply]:
        is_meanwhile = joining.is_set()
        replies = await renew(*commands)
        if is_meanwhile:
            renewed.release()
        return replies

    monkeypatch.setattr(process._sending, "call", join_late)
    monkeypatch.setattr(process._renewing, "call", note_renewal)
    await redis.execute_command(*process._channel.call("leave", process.id, 0))
    # The process that sends notices it first.
    member.bus._outbox.put(Call(Lane.CONTROL, "mark", lambda _, __: (1,)))
    await until(lambda: member.bus._roster is not None)
    await renewed.acquire()
    assert member.bus.stats.expulsions == 1


# -- which processes know each other -------------------------------------------------------------


async def test_a_process_that_missed_a_rejoin_still_learns_of_its_workers(
    redis_server: EmbeddedRedis, proxy: TcpProxy, redis: Redis
):
    async with Pair(proxy.url, redis_server.url) as pair:
        await pair.working.wait_until_known("requester")
        proxy.block()
        ended = pair.working.bus._process.id
        pair.asking.bus.remove_process(ended, [pair.working.runner.name])
        await redis.flushall()
        # It announces that it is back while no other process is on the channel.
        await until(lambda: pair.working.bus._roster is not None)
        await pair.working.bus._outbox.wait_until_empty()
        proxy.unblock()
        proxy.reset()
        await pair.asking.wait_until_known("responder")


async def test_a_rejoining_process_gets_an_introduction_from_a_process_that_already_knows_it(
    redis_server: EmbeddedRedis, redis: Redis
):
    async with Pair(redis_server.url, redis_server.url) as pair:
        await pair.working.wait_until_known("requester")
        # All earlier messages between the two have arrived.
        await pair.working.bus._outbox.wait_until_empty()
        await pair.asking.bus._router.wait_until_caught_up()
        await pair.asking.wait_until_known("responder")
        ended = pair.working.bus._process.id
        pair.asking.bus.remove_process(ended, [pair.working.runner.name])
        process, known = pair.asking.bus._process, pair.working.runner._known_runners
        assert process is not None
        await redis.execute_command(*process._channel.call("leave", process.id, 0))
        await until(lambda: not known)
        # As after an introduction that arrives later than the notice that its sender has ended.
        known.add(pair.asking.runner.name)
        await pair.asking.wait_until_known("responder")


# -- its open requests ---------------------------------------------------------------------------


async def test_a_job_cancelled_before_its_receipt_is_not_requested_again(
    redis_server: EmbeddedRedis, proxy: TcpProxy, redis: Redis
):
    async with Pair(proxy.url, redis_server.url) as pair:
        await pair.asking.bus._outbox.wait_until_empty()
        proxy.block()
        with pytest.raises(JobTimeoutError):
            await pair.requester.ask("responder", "wait", timeout=0.2)
        assert pair.asking.bus._outbox.list_tried()
        await redis.flushall()
        proxy.reset()
        proxy.unblock()
        await until(lambda: pair.asking.bus.stats.expulsions and pair.working.bus.stats.expulsions)
        assert (await pair.ask("echo", payload={"x": 1}))["payload"] == {"x": 1}
        assert len(pair.worker.ran) == 1


async def test_a_job_that_its_worker_had_before_is_not_left_waiting(
    redis_server: EmbeddedRedis, proxy: TcpProxy, redis: Redis
):
    """The requester's process was declared dead before the receipt, and sends the request again."""
    async with Pair(proxy.url, redis_server.url) as pair:
        await pair.asking.bus._outbox.wait_until_empty()
        proxy.swallows_replies = True
        held = pair.ask("wait")
        await pair.worker.started.get()
        process = pair.asking.bus._process
        assert process is not None
        await redis.execute_command(*process._channel.call("leave", process.id, 0))
        await until(lambda: pair.worker.cancelled)
        proxy.swallows_replies = False
        proxy.reset()
        with pytest.raises(WorkerLostError, match="no process that may run it came"):
            await held
        assert len(pair.worker.ran) == 1


# -- the end -------------------------------------------------------------------------------------


async def test_a_process_leaves_nothing_even_if_the_server_has_forgotten_the_script(
    redis_server: EmbeddedRedis, redis: Redis
):
    async with ShortLeaseMember(redis_server.url, Responder()) as member:
        await member.bus._outbox.wait_until_empty()
        process, member.bus._process = member.bus._process, None
        assert process is not None
        await redis.script_flush()
        assert await process.fetch_roster() == {member.runner.name}
        await redis.script_flush()
        await process.stop(timeout=5)
        await assert_nothing_remains(redis)


async def test_a_process_that_stops_while_it_joins_again_reads_no_more(
    redis_server: EmbeddedRedis, redis: Redis, monkeypatch: pytest.MonkeyPatch
):
    async with ShortLeaseMember(redis_server.url, Responder()) as member:
        bus, process = member.bus, member.bus._process
        assert process is not None
        await bus._outbox.wait_until_empty()
        before, cancel = process._reader, bus.cancel_task

        async def cancel_and_wait(task: asyncio.Task[None]) -> None:
            await cancel(task)
            if task is sender:
                await until(lambda: process._reader is not before)

        sender, _ = process._tasks
        bus._process = None
        await redis.execute_command(*process._channel.call("leave", process.id, 0))
        monkeypatch.setattr(bus, "cancel_task", cancel_and_wait)
        await process.stop(timeout=5)
        monkeypatch.undo()
        tasks = {task.get_name() for task in asyncio.all_tasks()}
        assert not [name for name in tasks if "redis_read" in name]
        await assert_nothing_remains(redis)


async def test_a_call_that_the_server_could_not_do_is_not_overtaken_by_later_calls(
    member: ShortLeaseMember, redis: Redis
):
    """Another client may load the script again between two calls of one batch."""
    traffic, _ = LOAD
    await redis.script_flush()
    await redis.execute_command(*traffic)
    caught_up = asyncio.create_task(member.bus._router.wait_until_caught_up())
    await asyncio.sleep(0)
    await member.bus.send(BusActivateWorkerMessage(source="responder", target="nobody"))
    async with asyncio.timeout(100):
        await caught_up
