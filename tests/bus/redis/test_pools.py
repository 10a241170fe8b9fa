"""``RedisStreamsBus``: several processes host a worker of one name, and what the server keeps."""

import asyncio
import contextlib

import pytest
from pipecat.bus.messages import BusJobRequestMessage
from redis.asyncio import Redis
from support.redis.processes import (
    LEASE,
    Member,
    ShortLeaseMember,
    assert_nothing_remains,
    redis,
    redis_server,
    until,
    until_async,
)
from support.workers import Requester, Responder

from pipecat_jobs import JobTimeoutError, OutcomeStatus, WorkerLostError, job
from pipecat_jobs.bus.redis import EmbeddedRedis

__all__ = ["redis", "redis_server"]


class Narrow(Responder):
    @job(name="narrow", max_concurrency=2)
    async def narrow(self, message: BusJobRequestMessage) -> dict:
        return await self.wait_for_release(message)


# -- pools ---------------------------------------------------------------------------------------


async def test_a_pool_shares_the_work_by_the_slots_of_its_processes(redis_server: EmbeddedRedis):
    async with (
        Member(redis_server.url, requester := Requester()) as member,
        Member(redis_server.url, one := Narrow("w")),
        Member(redis_server.url, two := Narrow("w")),
    ):
        await member.wait_until_known("w")
        asking = [
            asyncio.create_task(requester.ask("w", "narrow", timeout=20, job_id=f"job-{number}"))
            for number in range(6)
        ]
        started = [await worker.started.get() for worker in (one, two, one, two)]
        assert len(one.active_jobs) == len(two.active_jobs) == 2
        # Jobs that wait for a slot wait at the server, and arrive in order.
        one.release.set()
        rest = [await one.started.get() for _ in range(2)]
        assert sorted(started + rest) == [f"job-{number}" for number in range(6)]
        two.release.set()
        await asyncio.gather(*asking)


async def test_a_worker_without_a_free_slot_for_one_job_still_gets_its_other_jobs(
    redis_server: EmbeddedRedis,
):
    async with (
        Member(redis_server.url, requester := Requester()) as member,
        Member(redis_server.url, worker := Narrow("w")),
    ):
        await member.wait_until_known("w")
        asking = [asyncio.create_task(requester.ask("w", "narrow", timeout=20)) for _ in range(3)]
        for _ in range(2):
            await worker.started.get()
        assert (await requester.ask("w", "echo", timeout=60))["from"] == "w"
        worker.release.set()
        await asyncio.gather(*asking)


async def test_a_cancelled_request_that_waits_for_a_slot_never_runs(
    redis_server: EmbeddedRedis, redis: Redis
):
    async with (
        Member(redis_server.url, requester := Requester()) as member,
        Member(redis_server.url, worker := Narrow("w")),
    ):
        await member.wait_until_known("w")
        held = [asyncio.create_task(requester.ask("w", "narrow", timeout=20)) for _ in range(2)]
        for _ in held:
            await worker.started.get()
        with pytest.raises(JobTimeoutError):
            await requester.ask("w", "narrow", timeout=0.1)
        await until(lambda: requester.fired() == ["on_job_response"])
        assert not await redis.keys("*:queue*")
        worker.release.set()
        await asyncio.gather(*held)
        assert len(worker.ran) == 2


async def test_a_request_that_no_process_can_take_is_lost_in_bounded_time(
    redis_server: EmbeddedRedis, redis: Redis
):
    async with (
        ShortLeaseMember(redis_server.url, requester := Requester()) as member,
        ShortLeaseMember(redis_server.url, worker := Responder()) as other,
    ):
        await member.wait_until_known("responder")
        await other.bus.drain()
        with pytest.raises(WorkerLostError, match=f"came within {LEASE:g} s") as caught:
            await requester.ask("responder", "echo", timeout=20)
        assert caught.value.outcomes["responder"].status is OutcomeStatus.LOST
        assert not worker.ran


async def test_requests_for_a_worker_that_ends_go_to_another_process(
    redis_server: EmbeddedRedis,
):
    async with (
        Member(redis_server.url, requester := Requester()) as member,
        Member(redis_server.url, one := Responder()),
        Member(redis_server.url, two := Responder()),
    ):
        await member.wait_until_known("responder")
        await one.stop()
        for _ in range(6):
            await requester.ask("responder", "echo", timeout=5)
        assert not one.ran
        assert len(two.ran) == 6


async def test_each_of_many_workers_in_a_few_processes_does_its_own_jobs(
    redis_server: EmbeddedRedis, redis: Redis
):
    names = [f"w{number}" for number in range(64)]
    async with (
        Member(redis_server.url, requester := Requester()) as member,
        Member(redis_server.url, *map(Responder, names[:32])),
        Member(redis_server.url, *map(Responder, names[32:])),
    ):
        await member.wait_until_known(*names)
        async with requester.job_group(*names, name="echo", timeout=20) as group:
            pass
        assert {name: response["from"] for name, response in group.responses.items()} == {
            name: name for name in names
        }
    await assert_nothing_remains(redis)


# -- what is kept at the server ------------------------------------------------------------------


async def test_every_key_has_a_time_to_live(redis_server: EmbeddedRedis, redis: Redis):
    async with (
        Member(redis_server.url, requester := Requester()) as member,
        Member(redis_server.url, worker := Narrow("w")),
    ):
        await member.wait_until_known("w")
        asking = [asyncio.create_task(requester.ask("w", "narrow", timeout=20)) for _ in range(4)]
        for _ in range(2):
            await worker.started.get()
        await member.wait_until_sent()
        keys = await redis.keys()
        assert len({key.split(":")[2] for key in keys}) == 9
        assert [key for key in keys if await redis.pttl(key) < 0] == []
        worker.release.set()
        await asyncio.gather(*asking)


async def test_keys_outlive_the_longest_wait_of_a_process(
    redis_server: EmbeddedRedis, redis: Redis
):
    slow = {"lease": 100.0, "takeover": 200.0}
    async with (
        Member(redis_server.url, requester := Requester(), **slow) as member,
        Member(redis_server.url, worker := Narrow("w"), **slow) as working,
    ):
        await member.wait_until_known("w")
        asking = [asyncio.create_task(requester.ask("w", "narrow", timeout=300)) for _ in range(4)]
        for _ in range(2):
            await worker.started.get()
        await working.bus.drain(timeout=0)
        await until_async(lambda: redis.exists("pipecat-jobs:{pipecat}:waiting"))
        lives = {key: await redis.pttl(key) for key in await redis.keys()}
        assert min(lives.values()) > 300_000, lives
        for task in asking:
            task.cancel()
        await asyncio.wait(asking)


async def test_a_job_costs_the_server_as_much_with_many_processes_as_with_two(
    redis_server: EmbeddedRedis, redis: Redis
):
    async def commands_for(jobs: int) -> int:
        await member.bus._router.wait_until_caught_up()
        await redis.config_resetstat()
        for _ in range(jobs):
            await requester.ask("w", "echo", timeout=5)
        stats = await redis.info("commandstats")
        return sum(each["calls"] for each in stats.values())

    # No process renews its lease during the measurement.
    long_lease = {"lease": 100.0}
    async with contextlib.AsyncExitStack() as stack:
        member = Member(redis_server.url, requester := Requester(), **long_lease)
        await stack.enter_async_context(member)
        await stack.enter_async_context(Member(redis_server.url, Responder("w"), **long_lease))
        await member.wait_until_known("w")
        with_two = await commands_for(100)
        for number in range(8):
            idle = Member(redis_server.url, Responder(f"idle-{number}"), **long_lease)
            await stack.enter_async_context(idle)
            await member.wait_until_known(f"idle-{number}")
        with_ten = await commands_for(100)
    assert with_ten == pytest.approx(with_two, rel=0.1)
    assert with_two <= 100 * 30


async def test_streams_are_trimmed_as_they_are_read(redis_server: EmbeddedRedis, redis: Redis):
    async with (
        Member(redis_server.url, requester := Requester()) as member,
        Member(redis_server.url, Responder()),
    ):
        await member.wait_until_known("responder")
        for _ in range(200):
            await requester.ask("responder", "echo", timeout=5)
        lengths = [await redis.xlen(key) for key in await redis.keys("*:in:*")]
        assert max(lengths) <= 2


async def test_an_idle_process_only_renews_its_lease_at_the_server(
    redis_server: EmbeddedRedis, redis: Redis
):
    async def calls(command: str) -> int:
        return (await redis.info("commandstats")).get(f"cmdstat_{command}", {"calls": 0})["calls"]

    async with ShortLeaseMember(redis_server.url, Responder()) as member:
        await member.wait_until_caught_up()
        scripts, reads = await calls("evalsha"), await calls("xread")

        async def renewed_twice() -> bool:
            return await calls("evalsha") >= scripts + 2

        await until_async(renewed_twice)
        # One read is under way, and another began when the last message had been read.
        assert await calls("xread") <= reads + 2


async def test_a_process_that_joins_costs_the_others_a_message_or_two_each(
    redis_server: EmbeddedRedis,
):
    async with contextlib.AsyncExitStack() as stack:
        members = [Member(redis_server.url, Responder(f"w{number}")) for number in range(8)]
        for member in members:
            await stack.enter_async_context(member)
        for member in members:
            await member.wait_until_known(*(f"w{number}" for number in range(8)))
            await member.wait_until_caught_up()
        before = [member.bus.stats.received for member in members]
        await stack.enter_async_context(last := Member(redis_server.url, Responder("last")))
        for member in members:
            await member.wait_until_known("last")
        await last.wait_until_known(*(f"w{number}" for number in range(8)))
        for member in (*members, last, *members):
            await member.wait_until_caught_up()
        after = [member.bus.stats.received for member in members]
        marks = 2
        assert max(now - then for now, then in zip(after, before, strict=True)) <= 3 + marks
