"""``RedisStreamsBus``: a process that is restarted, and a bus that is started again."""

import asyncio
import signal

import pytest
from pipecat.bus import AsyncQueueBus
from pipecat.bus.messages import BusJobRequestMessage
from pipecat.workers.runner import WorkerRunner
from redis.asyncio import Redis
from support.redis.nodes import Nodes, nodes
from support.redis.processes import (
    Member,
    ShortLeaseMember,
    proxy,
    redis,
    redis_server,
    until,
    until_async,
)
from support.tcp_proxy import TcpProxy
from support.workers import Requester, Responder

from pipecat_jobs.bus.redis import EmbeddedRedis, RedisStreamsBus, drain_on_sigterm

__all__ = ["nodes", "proxy", "redis", "redis_server"]

CHANNEL = "pipecat-jobs:{pipecat}"


async def test_a_process_that_is_restarted_within_its_lease_stays_in_the_registry(
    nodes: Nodes, redis_server: EmbeddedRedis, redis: Redis
):
    options = {"lease": 3.0}
    async with Member(redis_server.url, requester := Requester(), **options) as member:
        assert member.bus._process is not None
        one = await nodes.start("gpu-box", "worker", options=options)
        await member.wait_until_known("worker")
        members = await redis.zrange(f"{CHANNEL}:members", 0, -1)
        [killed] = {*members} - {member.bus._process.id}
        one.send(signal.SIGKILL)
        await one.ended()
        two = await nodes.start("gpu-box", "worker", options=options)

        async def is_missed() -> bool:
            return await redis.exists(f"{CHANNEL}:proc:{killed}") == 0

        await until_async(is_missed)
        await member.wait_until_caught_up()
        assert "worker" in member.runner.registry
        assert (await requester.ask("worker", "echo", timeout=10))["pid"] == two.pid


async def test_messages_that_wait_when_a_bus_stops_are_sent_first_when_it_starts_again(
    redis_server: EmbeddedRedis, proxy: TcpProxy
):
    async with Member(redis_server.url, responder := Responder()) as other:
        tasks = other.runner.task_manager
        bus = RedisStreamsBus(proxy.url, lease=0.5)
        await bus.setup(tasks)
        await bus.start()
        await bus._router.wait_until_caught_up()
        proxy.block()
        requests = [
            BusJobRequestMessage(source="x", target="responder", job_id=str(n), job_name="echo")
            for n in range(8)
        ]
        await bus.send(requests[0])
        await bus.stop()
        proxy.unblock()
        proxy.reset()
        await bus.start()
        for request in requests[1:]:
            await bus.send(request)
        await until(lambda: len(responder.ran) >= 7)
        assert sorted(responder.ran)[-7:] == [str(n) for n in range(1, 8)]
        await bus.stop()


# -- a process that gets SIGTERM -----------------------------------------------------------------


async def test_a_second_sigterm_ends_a_draining_process_and_its_job_is_reassigned(
    nodes: Nodes, redis_server: EmbeddedRedis
):
    first = await nodes.start("n1", "worker")
    async with ShortLeaseMember(redis_server.url, requester := Requester()) as member:
        await member.wait_until_known("worker")
        asking = asyncio.create_task(
            requester.ask("worker", "hold", payload={"gate": "open"}, timeout=30)
        )
        await nodes.notes.next("started", pid=first.pid)
        second = await nodes.start("n2", "worker")
        first.send(signal.SIGTERM)
        # The process takes no more jobs, and waits for the one that it has.
        while (await requester.ask("worker", "echo", timeout=5))["pid"] == first.pid:
            pass
        for _ in range(3):
            assert (await requester.ask("worker", "echo", timeout=60))["pid"] == second.pid
        first.send(signal.SIGTERM)
        await first.ended()
        await nodes.notes.next("started", pid=second.pid, attempt=2)
        await nodes.notes.open_gate("open", times=2)
        assert await asking == {"pid": second.pid, "attempt": 2}


async def test_a_runner_on_another_bus_cannot_be_drained():
    with pytest.raises(TypeError, match="AsyncQueueBus; it has nothing to drain"):
        drain_on_sigterm(WorkerRunner(bus=AsyncQueueBus(), handle_sigint=False))
