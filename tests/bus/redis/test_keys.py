"""``RedisStreamsBus``: one job at a time for each key, over all processes that have the worker."""

import asyncio
import random
import signal
from typing import Any

import pytest
from pipecat.bus.messages import BusJobRequestMessage
from redis.asyncio import Redis
from support.redis.nodes import Nodes, nodes
from support.redis.processes import (
    Member,
    ShortLeaseMember,
    assert_nothing_remains,
    redis,
    redis_server,
)
from support.workers import Requester, until

from pipecat_jobs import (
    BaseWorker,
    CancelReason,
    JobCancelledError,
    JobError,
    JobRefusal,
    job,
)
from pipecat_jobs.bus.redis import EmbeddedRedis

__all__ = ["nodes", "redis", "redis_server"]

SHIP = {"ship": 7}


class Fleet(BaseWorker):
    """A worker whose handlers run until the test lets them go on. The processes share its notes."""

    job_cancel_grace = 60.0

    def __init__(self, notes: "Notes"):
        super().__init__("fleet")
        self._notes = notes

    async def _fly(self, message: BusJobRequestMessage) -> dict:
        return await self._notes.fly(self, message)

    @job(name="queue", key="ship", max_concurrency=2)
    async def queue(self, message: BusJobRequestMessage) -> dict:
        return await self._fly(message)

    @job(name="refuse", key="ship", on_busy="refuse", max_concurrency=1)
    async def refuse(self, message: BusJobRequestMessage) -> dict:
        return await self._fly(message)

    @job(name="replace", key="ship", on_busy="replace", max_concurrency=1)
    async def replace(self, message: BusJobRequestMessage) -> dict:
        return await self._fly(message)

    @job(name="join", key="ship", on_busy="join", max_concurrency=1)
    async def join(self, message: BusJobRequestMessage) -> dict:
        return await self._fly(message)


class Notes:
    """Which jobs run where."""

    def __init__(self) -> None:
        self.begun: asyncio.Queue[tuple[str, Fleet]] = asyncio.Queue()
        self.results: dict[str, asyncio.Future[None]] = {}
        self.running: dict[tuple[str | None, Any], str] = {}
        #: Seconds that each job takes; None: until `land()`.
        self.takes: float | None = None

    async def fly(self, worker: Fleet, message: BusJobRequestMessage) -> dict:
        assert message.payload is not None
        key = message.job_name, message.payload["ship"]
        assert key not in self.running, f"{message.job_id} runs beside {self.running[key]}"
        self.running[key] = message.job_id
        result = self.results[message.job_id] = asyncio.get_running_loop().create_future()
        self.begun.put_nowait((message.job_id, worker))
        try:
            if self.takes is None:
                await result
            else:
                await asyncio.sleep(self.takes)
        finally:
            del self.running[key]
        return {"by": message.job_id}

    def land(self, job_id: str) -> None:
        self.results[job_id].set_result(None)

    async def next_begun(self) -> tuple[str, Fleet]:
        async with asyncio.timeout(100):
            return await self.begun.get()


class Pool:
    """Two processes with a worker and a requester each, and a process with a requester alone."""

    def __init__(self, url: str):
        self.notes = Notes()
        self.requesters = [Requester(f"r{number}") for number in range(3)]
        self.fleets = [Fleet(self.notes) for _ in range(2)]
        self.members = [
            Member(url, *workers)
            for workers in (
                (self.fleets[0], self.requesters[0]),
                (self.fleets[1], self.requesters[1]),
                (self.requesters[2],),
            )
        ]

    async def __aenter__(self) -> "Pool":
        for member in self.members:
            await member.__aenter__()
        await self.members[2].wait_until_known("fleet")
        return self

    async def __aexit__(self, *exception: Any) -> None:
        for member in self.members:
            await member.__aexit__(*exception)

    def ask(self, requester: int, name: str, job_id: str, **options: Any) -> asyncio.Task[dict]:
        return asyncio.create_task(
            self.requesters[requester].ask(
                "fleet", name, job_id=job_id, **{"payload": SHIP, **options}
            )
        )

    async def arrive(self) -> None:
        """Wait until the jobs that were asked for are at their workers."""
        for _ in range(2):
            for member in self.members:
                await member.wait_until_sent()
                await member.wait_until_caught_up()


@pytest.mark.parametrize("first", range(3))
async def test_a_refusal_counts_for_all_processes(redis_server: EmbeddedRedis, first: int):
    async with Pool(redis_server.url) as pool:
        running = pool.ask(first, "refuse", "j1")
        await pool.notes.next_begun()
        for requester in range(3):
            with pytest.raises(JobError) as caught:
                await pool.ask(requester, "refuse", f"j2-{requester}", timeout=100)
            outcome = caught.value.outcomes["fleet"]
            assert (outcome.refusal, outcome.held_by) == (JobRefusal.BUSY, "j1")
        pool.notes.land("j1")
        assert await running == {"by": "j1"}


async def test_a_job_replaces_one_that_another_process_asked_for(redis_server: EmbeddedRedis):
    async with Pool(redis_server.url) as pool:
        first = pool.ask(0, "replace", "j1")
        _, worker = await pool.notes.next_begun()
        second = pool.ask(1, "replace", "j2")
        with pytest.raises(JobCancelledError) as caught:
            await first
        assert caught.value.outcomes["fleet"].cancel_reason is CancelReason.REPLACED
        assert await pool.notes.next_begun() == ("j2", worker)
        pool.notes.land("j2")
        assert await second == {"by": "j2"}


async def test_jobs_of_several_processes_join_one_job(redis_server: EmbeddedRedis):
    async with Pool(redis_server.url) as pool:
        asked = [pool.ask(2, "join", "j0")]
        await pool.notes.next_begun()
        asked += [pool.ask(number, "join", f"j{number + 1}") for number in range(3)]
        await asyncio.sleep(0)
        await pool.arrive()
        pool.notes.land("j0")
        assert await asyncio.gather(*asked) == [{"by": "j0"}] * 4


async def test_jobs_of_several_processes_queue_for_one_key(
    redis_server: EmbeddedRedis, redis: Redis
):
    async with Pool(redis_server.url) as pool:
        asked = [pool.ask(number % 3, "queue", f"j{number}") for number in range(6)]
        workers = set[int]()
        for _ in asked:
            job_id, worker = await pool.notes.next_begun()
            workers.add(id(worker))
            await pool.arrive()
            assert pool.notes.begun.empty()
            pool.notes.land(job_id)
        await asyncio.gather(*asked)
        # No process is bound to the key once it is free.
        assert not await redis.exists("pipecat-jobs:{pipecat}:keys")
        assert len(workers) == 1
    await assert_nothing_remains(redis)


@pytest.mark.parametrize("name", ["queue", "refuse", "replace", "join"])
async def test_a_hedge_is_refused_by_the_process_that_has_the_first_attempt(
    redis_server: EmbeddedRedis, name: str
):
    async with Pool(redis_server.url) as pool:
        asked = pool.ask(2, name, "j1", hedge_after=0.01)
        await pool.notes.next_begun()
        group: Any = pool.requesters[2].job_groups["j1"]
        attempts = group.handles["fleet"].attempts
        await until(lambda: len(attempts.made) == 2 and attempts.made[1].outcome)
        refused = attempts.made[1].outcome
        assert (refused.refusal, refused.held_by) == (JobRefusal.BUSY, "j1")
        pool.notes.land("j1")
        assert await asked == {"by": "j1"}
        assert pool.notes.begun.empty()


async def test_a_key_is_bound_to_a_process_that_is_drained_until_its_job_has_ended(
    redis_server: EmbeddedRedis,
):
    async with Pool(redis_server.url) as pool:
        first = pool.ask(2, "refuse", "j1")
        _, worker = await pool.notes.next_begun()
        number = pool.fleets.index(worker)
        draining = asyncio.create_task(pool.members[number].bus.drain())
        await asyncio.sleep(0)
        await pool.arrive()
        second = pool.ask(2, "refuse", "j2")
        await asyncio.sleep(0)
        await pool.arrive()
        assert pool.notes.begun.empty()
        pool.notes.land("j1")
        await first
        assert await pool.notes.next_begun() == ("j2", pool.fleets[1 - number])
        pool.notes.land("j2")
        await asyncio.gather(second, draining)


async def test_random_jobs_of_a_pool_run_one_at_a_time_for_each_key(
    redis_server: EmbeddedRedis, redis: Redis
):
    """`Notes.fly` raises if two jobs of one key run at once, and their requesters would fail."""
    chance = random.Random(7)
    async with Pool(redis_server.url) as pool:
        pool.notes.takes = 0.01
        asked = list[asyncio.Task[dict]]()
        for number in range(120):
            name = chance.choice(["queue", "refuse", "replace", "join"])
            payload = {"ship": chance.randrange(3)}
            asked.append(pool.ask(chance.randrange(3), name, f"j{number}", payload=payload))
            if chance.random() < 0.2:
                chance.choice(asked).cancel()
            await asyncio.sleep(chance.choice([0, 0, 0.005, 0.02]))
        async with asyncio.timeout(100):
            results = await asyncio.gather(*asked, return_exceptions=True)
        for result in results:
            if isinstance(result, JobError):
                outcome = result.outcomes["fleet"]
                refused = outcome.refusal is JobRefusal.BUSY
                assert refused or outcome.cancel_reason is CancelReason.REPLACED, outcome
            elif not isinstance(result, asyncio.CancelledError):
                assert set(result) == {"by"}
        await pool.arrive()
        assert not pool.notes.running
        assert not await redis.exists("pipecat-jobs:{pipecat}:keys")
    await assert_nothing_remains(redis)


async def test_the_jobs_of_a_key_run_one_at_a_time_after_their_process_was_killed(
    redis_server: EmbeddedRedis, nodes: Nodes
):
    started = {name: await nodes.start(name, "worker") for name in ("n1", "n2")}
    requester = Requester()
    async with ShortLeaseMember(redis_server.url, requester) as member:
        await member.wait_until_known("worker")
        payload = {**SHIP, "gate": "open"}
        asking = [
            asyncio.create_task(
                requester.ask("worker", "fly", payload=payload, timeout=100, job_id=f"j{number}")
            )
            for number in range(3)
        ]
        first = await nodes.notes.next("started")
        await member.wait_until_sent()
        [killed] = [node for node in started.values() if node.pid == first["pid"]]
        killed.send(signal.SIGKILL)
        pids = set[int]()
        for _ in asking:
            again = await nodes.notes.next("started")
            pids.add(again["pid"])
            assert not [note for note in await nodes.notes.rest() if note["what"] == "started"]
            await nodes.notes.open_gate("open")
            await nodes.notes.next("finished", job=again["job"])
        assert pids == {node.pid for node in started.values()} - {killed.pid}
        assert {(await asked)["pid"] for asked in asking} == pids
