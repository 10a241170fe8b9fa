"""Jobs across processes on Pipecat's own bus: which promises hold there, and which do not."""

import asyncio
import signal
import sys
from collections.abc import Awaitable
from pathlib import Path

import pytest
from pipecat.bus.messages import BusJobRequestMessage
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff
from support.redis.nodes import Nodes, nodes
from support.redis.processes import CHANNEL, PubSubMember, redis, redis_server, until, until_async
from support.tcp_proxy import TcpProxy
from support.workers import Requester, Responder, cancelled

from pipecat_jobs import BaseWorker, JobError, JobTimeoutError, OutcomeStatus, job
from pipecat_jobs.bus.redis import EmbeddedRedis

__all__ = ["nodes", "redis", "redis_server"]

#: Seconds; the timeout of a job that has to end at its deadline.
SOON = 0.5


class Reporter(BaseWorker):
    """A worker that sends updates and streams."""

    @job(name="report")
    async def report(self, message: BusJobRequestMessage) -> dict:
        for number in range(20):
            await self.send_job_update(message.job_id, {"number": number})
        return {"reported": 20}

    @job(name="count")
    async def count(self, message: BusJobRequestMessage):
        for number in range(20):
            yield {"number": number}


# Promises that hold


async def test_a_job_and_a_group_are_done_by_another_process(redis_server: EmbeddedRedis):
    requester, first, second = Requester(), Responder("first"), Responder("second")
    async with (
        PubSubMember(redis_server.url, first, second),
        PubSubMember(redis_server.url, requester),
    ):
        response = await requester.ask("first", "echo", payload={"n": 1}, timeout=20)
        assert response == {"from": "first", "payload": {"n": 1}}

        async with requester.job_group("first", "second", name="echo", timeout=20) as group:
            pass
        assert {name: r["from"] for name, r in group.responses.items()} == {
            "first": "first",
            "second": "second",
        }


async def test_a_cancel_stops_the_handler_in_the_other_process(redis_server: EmbeddedRedis):
    requester, responder = Requester(), Responder()
    async with (
        PubSubMember(redis_server.url, responder),
        PubSubMember(redis_server.url, requester),
    ):
        call = asyncio.create_task(requester.ask("responder", "wait"))
        job_id = await responder.started.get()
        await cancelled(call)
        await until(lambda: not responder.active_jobs)
        assert responder.cancelled == [job_id]


async def test_updates_and_chunks_arrive_in_order(redis_server: EmbeddedRedis):
    requester = Requester()
    async with (
        PubSubMember(redis_server.url, Reporter("reporter")),
        PubSubMember(redis_server.url, requester),
    ):
        for name in ("report", "count"):
            async with requester.job("reporter", name=name, timeout=20) as j:
                numbers = [event.data["number"] async for event in j if event.data]
            assert numbers == list(range(20))


async def test_a_worker_that_is_ended_in_the_other_process_cancels_its_job(
    redis_server: EmbeddedRedis,
):
    requester, responder = Requester(), Responder()
    async with PubSubMember(redis_server.url, requester):
        async with PubSubMember(redis_server.url, responder):
            call = asyncio.create_task(requester.ask("responder", "wait"))
            await responder.started.get()
        with pytest.raises(JobError) as caught:
            await call
    outcome = caught.value.outcomes["responder"]
    assert outcome.status is OutcomeStatus.CANCELLED
    assert outcome.reason == "worker 'responder' stopped"


# Promises that do not hold


async def test_a_job_whose_process_dies_ends_at_its_deadline(nodes: Nodes, redis_server):
    node = await nodes.start("node", "worker", pubsub=True)
    requester = Requester()
    async with PubSubMember(redis_server.url, requester):
        call = asyncio.create_task(requester.ask("worker", "hold", timeout=2))
        await nodes.notes.next("started")
        node.send(signal.SIGKILL)
        await node.ended()
        await _times_out(call, "worker")


async def test_a_worker_is_not_notified_that_the_requesters_process_has_died(nodes: Nodes):
    await nodes.start("node", "worker", pubsub=True)
    asks = {"name": "requester", "asks": "worker", "job": "hold", "gate": "open"}
    asking = await nodes.start("asking", requesters=[asks], pubsub=True)
    started = await nodes.notes.next("started")
    asking.send(signal.SIGKILL)
    await asking.ended()
    await nodes.notes.open_gate("open")
    await nodes.notes.next("finished", job=started["job"])


async def test_messages_sent_to_a_process_while_it_reconnects_are_lost(
    redis_server: EmbeddedRedis, redis: Redis
):
    requester, responder = Requester(), Responder()
    retry = Retry(ConstantBackoff(0.01), retries=10)
    async with (
        TcpProxy(redis_server.url) as proxy,
        PubSubMember(redis_server.url, responder),
        PubSubMember(proxy.url, requester, retry=retry),
    ):
        call = asyncio.create_task(requester.ask("responder", "wait", timeout=2))
        await responder.started.get()
        proxy.block()
        proxy.reset()
        await until_async(lambda: _subscribed(redis, 1))
        responder.release.set()
        await until(lambda: not responder.active_jobs)
        proxy.unblock()
        await until_async(lambda: _subscribed(redis, 2))

        await _times_out(call, "responder")
        assert await requester.ask("responder", "echo", timeout=20)


async def test_a_process_whose_client_does_not_retry_receives_nothing_after_a_cut_connection(
    redis_server: EmbeddedRedis, redis: Redis
):
    requester, responder = Requester(), Responder()
    async with (
        TcpProxy(redis_server.url) as proxy,
        PubSubMember(redis_server.url, responder),
        PubSubMember(proxy.url, requester) as asking,
    ):
        await asking.wait_until_known("responder")
        proxy.reset()
        await until_async(lambda: _subscribed(redis, 1))
        await _times_out(
            requester.ask("responder", "echo", job_id="unheard", timeout=2), "responder"
        )
        assert responder.ran == ["unheard"]

        # The process would not receive the cancel of its runner either.
        await asking.runner.bus.stop()
        await asking.runner.bus.start()


async def test_a_server_that_stops_responding_does_not_keep_a_job_past_its_deadline(
    redis_server: EmbeddedRedis,
):
    requester, responder = Requester(), Responder()
    async with (
        TcpProxy(redis_server.url) as proxy,
        PubSubMember(redis_server.url, responder),
        PubSubMember(proxy.url, requester) as asking,
    ):
        await asking.wait_until_known("responder")
        proxy.block()
        await _times_out(requester.ask("responder", "echo", timeout=SOON), "responder")
        proxy.unblock()


async def test_every_process_that_has_a_worker_does_the_job(redis_server: EmbeddedRedis):
    requester, one, another = Requester(), Responder(), Responder()
    async with (
        PubSubMember(redis_server.url, one),
        PubSubMember(redis_server.url, another),
        PubSubMember(redis_server.url, requester),
    ):
        call = asyncio.create_task(requester.ask("responder", "wait", timeout=20))
        job_id = await one.started.get()
        assert await another.started.get() == job_id
        one.release.set()
        assert await call == {"from": "responder"}
        another.release.set()
        await until(lambda: not another.active_jobs)


async def test_values_that_cannot_be_carried_arrive_as_none(redis_server: EmbeddedRedis):
    requester = Requester()
    async with (
        PubSubMember(redis_server.url, Responder()),
        PubSubMember(redis_server.url, requester),
    ):
        response = await requester.ask("responder", "echo", payload={"set": {1}, "pair": (1, 2)})
        assert response["payload"] == {"set": None, "pair": None}


async def test_a_message_makes_a_process_import_the_types_that_it_names(
    redis_server: EmbeddedRedis, redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "named_by_a_stranger.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    async with PubSubMember(redis_server.url, Responder()):
        await redis.publish(CHANNEL, '{"__type__": "named_by_a_stranger.Thing", "__data__": {}}')
        await until(lambda: "named_by_a_stranger" in sys.modules)


async def _times_out(call: Awaitable[object], worker: str) -> None:
    with pytest.raises(JobTimeoutError) as caught:
        await call
    assert caught.value.outcomes[worker].status is OutcomeStatus.TIMED_OUT


async def _subscribed(redis: Redis, count: int) -> bool:
    [(_, subscribed)] = await redis.pubsub_numsub(CHANNEL)
    return subscribed == count
