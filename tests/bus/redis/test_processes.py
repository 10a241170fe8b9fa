"""``RedisStreamsBus``: what happens to a job when a process dies, stalls or leaves.

Every test runs real processes on a real server, and is a row of the table in
docs/how-to/distributed.md.
"""

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis
from support.redis.nodes import Nodes, nodes
from support.redis.processes import (
    LEASE,
    ShortLeaseMember,
    assert_nothing_remains,
    redis,
    redis_server,
    until,
    until_async,
)
from support.workers import Requester, Responder

from pipecat_jobs import JobError, JobTimeoutError, OutcomeStatus, WorkerLostError
from pipecat_jobs.bus.redis import EmbeddedRedis

__all__ = ["nodes", "redis", "redis_server"]


@pytest.fixture(autouse=True)
async def assert_nothing_is_left(nodes: Nodes, redis: Redis) -> AsyncIterator[None]:
    """Check that nothing is left on the server once the last process has left."""
    yield
    await nodes.end_all()
    await assert_nothing_remains(redis)


async def lost(asking: asyncio.Task) -> str:
    """Check that a job ends as lost, and return the error that the requester gets."""
    with pytest.raises(WorkerLostError) as caught:
        await asking
    [outcome] = caught.value.outcomes.values()
    assert outcome.status is OutcomeStatus.LOST
    assert outcome.reason
    assert outcome.reason in str(caught.value)
    return str(caught.value)


def ask(requester: Requester, worker: str, name: str, **keywords) -> asyncio.Task:
    return asyncio.create_task(requester.ask(worker, name, timeout=30, **keywords))


# -- the process of the worker dies --------------------------------------------------------------


async def test_a_job_whose_worker_is_killed_is_reassigned(
    redis_server: EmbeddedRedis, nodes: Nodes, redis: Redis
):
    first = await nodes.start("n1", "worker")
    async with ShortLeaseMember(redis_server.url, requester := Requester()) as member:
        await member.wait_until_known("worker")
        asking = ask(requester, "worker", "hold", payload={"gate": "open"})
        started = await nodes.notes.next("started")
        assert (started["pid"], started["attempt"]) == (first.pid, 1)
        second = await nodes.start("n2", "worker")
        first.send(signal.SIGKILL)
        again = await nodes.notes.next("started")
        assert (again["pid"], again["attempt"]) == (second.pid, 2)
        await nodes.notes.open_gate("open")
        assert await asking == {"pid": second.pid, "attempt": 2}
        await nodes.end(second)
    await assert_nothing_remains(redis)


async def test_a_job_whose_only_worker_is_killed_is_lost_and_the_error_names_the_worker(
    redis_server: EmbeddedRedis, nodes: Nodes, redis: Redis
):
    node = await nodes.start("n1", "worker")
    async with ShortLeaseMember(redis_server.url, requester := Requester()) as member:
        await member.wait_until_known("worker")
        asking = ask(requester, "worker", "hold")
        await nodes.notes.next("started")
        node.send(signal.SIGKILL)
        killed = time.monotonic()
        assert await lost(asking) == (
            "worker 'worker' was lost before it responded to job 'hold': "
            "no process that may run it came within 1 s"
        )
        assert time.monotonic() - killed < 2 * LEASE + LEASE + 1
        assert "worker" not in member.runner.registry
        assert member.bus.stats.lost == 1
    await assert_nothing_remains(redis)


async def test_a_process_that_joins_in_time_takes_the_job_of_the_killed_worker(
    redis_server: EmbeddedRedis, nodes: Nodes
):
    first = await nodes.start("n1", "worker")
    async with ShortLeaseMember(redis_server.url, requester := Requester(), takeover=20) as member:
        await member.wait_until_known("worker")
        asking = ask(requester, "worker", "hold", payload={"gate": "open"})
        await nodes.notes.next("started")
        first.send(signal.SIGKILL)
        await member.wait_until_unknown("worker")
        replacement = await nodes.start("n2", "worker")
        await nodes.notes.open_gate("open")
        assert await asking == {"pid": replacement.pid, "attempt": 2}


@pytest.mark.parametrize("by", ["worker", "requester"])
async def test_a_job_that_must_not_run_twice_is_lost_with_its_process(
    redis_server: EmbeddedRedis, nodes: Nodes, by: str
):
    first = await nodes.start("n1", "worker")
    async with ShortLeaseMember(redis_server.url, requester := Requester()) as member:
        await member.wait_until_known("worker")
        if by == "worker":
            asking = ask(requester, "worker", "pay")
        else:
            asking = ask(requester, "worker", "hold", run_once=True)
        await nodes.notes.next("started")
        await nodes.start("n2", "worker")
        first.send(signal.SIGKILL)
        assert "must not run twice" in await lost(asking)
        assert (await requester.ask("worker", "echo", timeout=60))["attempt"] == 1
    assert not [note for note in await nodes.notes.rest() if note["what"] == "started"]


async def test_a_job_that_kills_its_process_is_lost_after_three_processes(
    redis_server: EmbeddedRedis, nodes: Nodes, redis: Redis
):
    for number in range(4):
        await nodes.start(f"n{number}", "worker")
    async with ShortLeaseMember(redis_server.url, requester := Requester()) as member:
        await member.wait_until_known("worker")
        asking = ask(requester, "worker", "poison")
        assert "every process that ran it was lost" in await lost(asking)
        started = [await nodes.notes.next("started") for _ in range(3)]
        assert [note["attempt"] for note in started] == [1, 2, 3]
        assert len({note["pid"] for note in started}) == 3
        assert (await requester.ask("worker", "echo", timeout=60))["attempt"] == 1


async def test_killing_a_worker_after_its_response_changes_nothing(
    redis_server: EmbeddedRedis, nodes: Nodes
):
    node = await nodes.start("n1", "worker")
    async with ShortLeaseMember(redis_server.url, requester := Requester()) as member:
        await member.wait_until_known("worker")
        assert (await requester.ask("worker", "echo", timeout=60))["pid"] == node.pid
        node.send(signal.SIGKILL)
        await member.wait_until_unknown("worker")
        assert requester.fired() == ["on_job_response", "on_job_completed"]
        # The next requester does not wait in vain for its whole timeout.
        with pytest.raises(JobTimeoutError):
            await requester.ask("worker", "echo", timeout=0.2)


async def test_killing_a_worker_before_it_took_a_request_loses_no_request(
    redis_server: EmbeddedRedis, nodes: Nodes
):
    first = await nodes.start("n1", "worker")
    async with ShortLeaseMember(redis_server.url, requester := Requester(), takeover=60) as member:
        await member.wait_until_known("worker")
        first.send(signal.SIGSTOP)
        asking = [ask(requester, "worker", "echo") for _ in range(5)]
        await until(lambda: member.bus.stats.sent >= 5)
        first.send(signal.SIGKILL)
        second = await nodes.start("n2", "worker")
        assert {(await each)["pid"] for each in asking} == {second.pid}


async def test_a_reassigned_stream_starts_again_and_says_so(
    redis_server: EmbeddedRedis, nodes: Nodes
):
    first = await nodes.start("n1", "worker")
    async with ShortLeaseMember(redis_server.url, requester := Requester()) as member:
        await member.wait_until_known("worker")
        received = []

        async def listen() -> None:
            payload = {"to": 2, "gate": "never"}
            async with requester.job("worker", name="count", payload=payload, timeout=30) as j:
                async for event in j:
                    received.append((event.type, (event.data or {}).get("attempt")))

        listening = asyncio.create_task(listen())
        await nodes.notes.next("counted")
        await until(lambda: len(received) == 3)
        await nodes.start("n2", "worker")
        first.send(signal.SIGKILL)
        await listening
    kinds = ["stream_start", "stream_data", "stream_data"]
    assert [kind for kind, _ in received] == [*kinds, *kinds, "stream_end"]
    assert [attempt for _, attempt in received] == [None, 1, 1, None, 2, 2, None]


# -- the process of the requester dies -----------------------------------------------------------


async def test_killing_a_requester_stops_its_workers(
    redis_server: EmbeddedRedis, nodes: Nodes, redis: Redis
):
    async with ShortLeaseMember(redis_server.url, responder := Responder()) as member:
        requester = {"name": "requester", "asks": "responder", "job": "wait"}
        node = await nodes.start("n1", requesters=[requester])
        await responder.started.get()
        node.send(signal.SIGKILL)
        await until(lambda: responder.cancelled)
        await until(lambda: not responder.active_jobs)
        await member.wait_until_unknown("requester")
    await assert_nothing_remains(redis)


async def test_killing_a_requester_after_its_response_leaves_nothing(
    redis_server: EmbeddedRedis, nodes: Nodes
):
    async with ShortLeaseMember(redis_server.url, responder := Responder()) as member:
        requester = {"name": "requester", "asks": "responder", "job": "echo"}
        node = await nodes.start("n1", requesters=[requester])
        await nodes.notes.next("completed")
        node.send(signal.SIGKILL)
        await member.wait_until_unknown("requester")
        assert (len(responder.ran), responder.cancelled) == (1, [])
        assert not responder.active_jobs


async def test_killing_a_requester_before_its_request_is_taken_leaves_nothing(
    redis_server: EmbeddedRedis, nodes: Nodes, redis: Redis
):
    worker = await nodes.start("n1", "worker")
    async with ShortLeaseMember(redis_server.url, requester := Requester()) as member:
        await member.wait_until_known("worker")
        taking_the_room = [
            ask(requester, "worker", "narrow", payload={"gate": "g"}) for _ in range(2)
        ]
        for _ in taking_the_room:
            await nodes.notes.next("started")
        other = {"name": "other", "asks": "worker", "job": "narrow"}
        node = await nodes.start("n2", requesters=[other])
        await until_async(lambda: redis.keys("*:queue:*"))
        node.send(signal.SIGKILL)
        await member.wait_until_unknown("other")
        assert not await redis.keys("*:queue:*")
        await nodes.notes.open_gate("g", 2)
        await asyncio.gather(*taking_the_room)
        await nodes.end(worker)
    await assert_nothing_remains(redis)
    assert not [note for note in await nodes.notes.rest() if note["what"] == "started"]


# -- a process stalls ----------------------------------------------------------------------------


async def test_a_worker_that_stalls_past_its_lease_can_no_longer_respond(
    redis_server: EmbeddedRedis, nodes: Nodes
):
    first = await nodes.start("n1", "worker")
    async with ShortLeaseMember(redis_server.url, requester := Requester()) as member:
        await member.wait_until_known("worker")
        asking = ask(requester, "worker", "hold", payload={"gate": "first"})
        await nodes.notes.next("started", pid=first.pid)
        second = await nodes.start("n2", "worker")
        first.send(signal.SIGSTOP)
        await nodes.notes.next("started", pid=second.pid, attempt=2)
        # The stalled process was next in turn: it is connected again, and responds.
        await nodes.notes.open_gate("first")
        first.send(signal.SIGCONT)
        await nodes.notes.next("finished", pid=first.pid)
        # Back on the channel, it does other jobs; its late response was ignored.
        pids: set[int] = set()
        while first.pid not in pids:
            pids.add((await requester.ask("worker", "echo", timeout=60))["pid"])
        assert not asking.done()
        await nodes.notes.open_gate("first")
        assert await asking == {"pid": second.pid, "attempt": 2}


async def test_the_job_of_a_requester_that_stalls_past_its_lease_is_lost(
    redis_server: EmbeddedRedis, nodes: Nodes
):
    async with ShortLeaseMember(redis_server.url, responder := Responder()):
        requester = {"name": "requester", "asks": "responder", "job": "wait"}
        node = await nodes.start("n1", requesters=[requester])
        await responder.started.get()
        node.send(signal.SIGSTOP)
        await until(lambda: responder.cancelled)
        node.send(signal.SIGCONT)
        ended = await nodes.notes.next("ended")
        assert ended["status"] == "lost"
        assert "away for longer than its lease" in ended["reason"]


# -- a process leaves ----------------------------------------------------------------------------


async def test_a_drained_process_finishes_its_jobs_and_takes_no_more(
    redis_server: EmbeddedRedis, nodes: Nodes, redis: Redis
):
    first = await nodes.start("n1", "worker")
    async with ShortLeaseMember(redis_server.url, requester := Requester()) as member:
        await member.wait_until_known("worker")
        asking = ask(requester, "worker", "hold", payload={"gate": "open"})
        await nodes.notes.next("started", pid=first.pid)
        second = await nodes.start("n2", "worker")
        first.send(signal.SIGTERM)

        async def only_one_takes_requests() -> bool:
            return await redis.hlen("pipecat-jobs:{pipecat}:hosts:worker") == 1

        await until_async(only_one_takes_requests)
        pids = {(await requester.ask("worker", "echo", timeout=60))["pid"] for _ in range(10)}
        assert pids == {second.pid}
        await nodes.notes.open_gate("open")
        assert await asking == {"pid": first.pid, "attempt": 1}
        await first.ended()
        await nodes.end(second)
    await assert_nothing_remains(redis)


async def test_a_drain_that_takes_too_long_reassigns_its_jobs(
    redis_server: EmbeddedRedis, nodes: Nodes
):
    first = await nodes.start("n1", "worker", drain_timeout=0.3)
    async with ShortLeaseMember(redis_server.url, requester := Requester()) as member:
        await member.wait_until_known("worker")
        asking = ask(requester, "worker", "hold", payload={"gate": "open"})
        await nodes.notes.next("started", pid=first.pid)
        second = await nodes.start("n2", "worker")
        first.send(signal.SIGTERM)
        await nodes.notes.next("cancelled", pid=first.pid)
        await nodes.notes.next("started", pid=second.pid, attempt=2)
        await first.ended()
        await nodes.notes.open_gate("open")
        assert await asking == {"pid": second.pid, "attempt": 2}


async def test_adding_and_draining_processes_in_mid_traffic_loses_nothing(
    redis_server: EmbeddedRedis, nodes: Nodes, redis: Redis
):
    node = await nodes.start("n0", "worker")
    async with ShortLeaseMember(redis_server.url, requester := Requester()) as member:
        await member.wait_until_known("worker")
        pids: list[int] = []
        over = asyncio.Event()

        async def keep_asking() -> None:
            while not over.is_set():
                pids.append((await requester.ask("worker", "echo", timeout=20))["pid"])

        asking = [asyncio.create_task(keep_asking()) for _ in range(8)]
        for number in range(1, 4):
            following = await nodes.start(f"n{number}", "worker")
            await until(lambda pid=following.pid: pid in pids)
            await nodes.end(node)
            node = following
        over.set()
        await asyncio.gather(*asking)
        assert len(set(pids)) == 4
        await nodes.end(node)
    await assert_nothing_remains(redis)


async def test_the_workers_of_many_processes_also_run_in_a_few_processes(
    redis_server: EmbeddedRedis, nodes: Nodes
):
    hosts = {
        number: [f"w{each}" for each in range(16 * number, 16 * number + 16)] for number in range(4)
    }
    first, *_ = [await nodes.start(f"n{number}", *names) for number, names in hosts.items()]
    all_workers = [name for names in hosts.values() for name in names]
    async with ShortLeaseMember(redis_server.url, requester := Requester()) as member:
        await member.wait_until_known(*all_workers)
        async with requester.job_group(*all_workers, name="echo", timeout=30) as group:
            pass
        assert len({response["pid"] for response in group.responses.values()}) == 4
        held = asyncio.create_task(_outcomes(requester, all_workers))
        for _ in all_workers:
            await nodes.notes.next("started")
        first.send(signal.SIGKILL)
        await member.wait_until_unknown(hosts[0][-1])
        await nodes.notes.open_gate("open", times=48)
        outcomes = await held
        lost_ones = {name for name, each in outcomes.items() if each is OutcomeStatus.LOST}
        completed = {name for name, each in outcomes.items() if each is OutcomeStatus.COMPLETED}
        assert lost_ones == set(hosts[0])
        assert completed == set(all_workers) - lost_ones


async def _outcomes(requester: Requester, workers: list[str]) -> dict[str, OutcomeStatus]:
    group = requester.job_group(
        *workers, name="hold", payload={"gate": "open"}, timeout=30, cancel_on_error=False
    )
    with contextlib.suppress(JobError):
        async with group:
            pass
    return {name: outcome.status for name, outcome in group.outcomes.items()}
