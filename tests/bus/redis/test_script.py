"""The script of the channel, called step by step as processes call it: routing."""

from collections import Counter

import pytest
from redis.asyncio import Redis
from support.redis.processes import assert_nothing_remains, redis, redis_server, until_async
from support.redis.script import PREFIX, Process, script

from pipecat_jobs.bus.redis.script import Limits

__all__ = ["redis", "redis_server", "script"]

pytestmark = pytest.mark.usefixtures("script")


def test_limits_are_sent_in_milliseconds():
    assert str(Limits(1.5, 0.0304, 3, inbox=7)) == "1500 30 3 7 63061"


# -- which host gets a job -----------------------------------------------------------------------


async def test_hosts_with_the_same_free_slots_take_turns(redis: Redis):
    requester = await Process(redis, "a").join()
    hosts = [await Process(redis, name).join("w") for name in "xyz"]
    given = {host.id: 0 for host in hosts}
    for _ in range(9):
        ref = await requester.ask("w")
        for host in hosts:
            for taken, _ in await host.jobs():
                assert taken == ref
                given[host.id] += 1
                await host.respond(ref)
    assert given == {"x": 3, "y": 3, "z": 3}


async def test_among_hosts_with_the_same_free_slots_the_one_with_the_fewest_jobs_is_asked(
    redis: Redis,
):
    requester = await Process(redis, "a").join()
    busy, idle = [await Process(redis, name).join("w", job=4) for name in "xy"]
    await busy.host("other")
    await requester.ask("other")
    await busy.read()
    for _ in range(4):
        ref = await requester.ask("w")
        assert await idle.jobs() == [(ref, 1)]
        await idle.respond(ref)
    assert await busy.jobs() == []


async def test_a_host_with_more_slots_is_asked_more_often(redis: Redis):
    requester = await Process(redis, "a").join()
    small = await Process(redis, "x").join("w", job=2)
    large = await Process(redis, "y").join("w", job=6)
    refs = [await requester.ask("w") for _ in range(9)]
    few, many = await small.jobs(), await large.jobs()
    assert (len(few), len(many)) == (2, 6)
    # The job that found no free slot waits for one.
    await large.respond(many[0][0])
    assert await large.jobs() == [(refs[8], 1)]
    assert await small.jobs() == []


async def test_a_job_with_its_own_limit_does_not_use_the_slots_of_others(redis: Redis):
    requester = await Process(redis, "a").join()
    host = await Process(redis, "x").join("w", wide=2)
    wide = [await requester.ask("w", "wide") for _ in range(3)]
    other = await requester.ask("w")
    assert await host.jobs() == [(wide[0], 1), (wide[1], 1), (other, 1)]
    await host.respond(other)
    assert await host.jobs() == []
    await host.respond(wide[0])
    assert await host.jobs() == [(wide[2], 1)]


async def test_jobs_that_share_slots_wait_for_each_other_and_each_gets_its_turn(redis: Redis):
    requester = await Process(redis, "a").join()
    host = await Process(redis, "x").join("w")
    waiting = {await requester.ask("w", name) for name in ("one", "two", "three", "two")}
    for left in (3, 2, 1, 0):
        [(ref, _)] = await host.jobs()
        waiting.remove(ref)
        assert len(waiting) == left
        await host.respond(ref)
    assert await host.jobs() == []


async def test_no_job_keeps_jobs_that_share_its_slots_waiting_for_ever(redis: Redis):
    requester = await Process(redis, "a").join()
    host = await Process(redis, "x").join("w")
    names = {await requester.ask("w", name): name for name in ["one", "two"] * 40}
    begun = Counter(one=0, two=0)
    # This counts the waiting jobs only: the first began at once.
    while min(begun.values()) < 2:
        [(ref, _)] = await host.jobs()
        begun[names.pop(ref)] += 1
        await host.respond(ref)
    assert set(names.values()) == {"one", "two"}


async def test_no_more_waiting_jobs_are_read_than_there_are_free_slots(redis: Redis):
    requester = await Process(redis, "a").join()
    # The script keeps turns only if there are several hosts.
    host, _ = [await Process(redis, name).join("w") for name in "xy"]
    for _ in range(10):
        await requester.ask("w")
    [(first, _)] = await host.jobs()
    before = int(await redis.hget(f"{PREFIX}:turns", "w"))
    await host.respond(first)
    assert int(await redis.hget(f"{PREFIX}:turns", "w")) == before + 2


async def test_jobs_that_wait_for_a_slot_are_assigned_in_the_order_of_their_requests(redis: Redis):
    requester = await Process(redis, "a").join()
    host = await Process(redis, "x").join("w")
    refs = [await requester.ask("w") for _ in range(5)]
    for ref in refs:
        assert await host.jobs() == [(ref, 1)]
        await host.respond(ref)


async def test_a_new_host_gets_the_waiting_jobs(redis: Redis):
    requester = await Process(redis, "a").join()
    refs = [await requester.ask("w", name) for name in ("one", "two")]
    host = await Process(redis, "x").join("w", one=1, two=1)
    assert sorted(await host.jobs()) == [(ref, 1) for ref in refs]
    await host.call("leave")
    await requester.call("leave")
    await assert_nothing_remains(redis)


async def test_a_process_without_a_slot_for_the_name_gets_no_requests(redis: Redis):
    requester = await Process(redis, "a").join()
    other = await Process(redis, "x").join()
    await other.call_once("host", "w", "")
    await requester.ask("w")
    assert await other.read() == []
    await requester.call("route", "d", "w", "hello", "0")
    assert await other.read() == [("d", "m", "", "hello")]


# -- which messages each may send, and where they go ---------------------------------------------


async def test_a_call_that_is_repeated_is_not_done_again(redis: Redis):
    requester = await Process(redis, "a").join()
    host = await Process(redis, "x").join("w", job=5)
    await requester.ask("w")
    assert await requester.repeat("request", "w", "job", 0, 1, "request") == "again"
    assert len(await host.jobs()) == 1


@pytest.mark.parametrize("to_self", ["0", "1"])
async def test_a_broadcast_goes_to_all_and_returns_to_its_sender_only_on_request(
    redis: Redis, to_self: str
):
    one, two = [await Process(redis, name).join() for name in "ab"]
    await one.call_once("route", "u", "", "hello", to_self)
    assert await two.read() == [("u", "m", "", "hello")]
    assert len(await one.read()) == int(to_self)


async def test_messages_of_a_job_take_the_lane_they_are_sent_by(redis: Redis):
    requester = await Process(redis, "a").join()
    host = await Process(redis, "x").join("w")
    ref = await requester.ask("w")
    await host.read()
    for lane in "ud":
        await requester.call_once(
            "notify_worker", ref.rpartition(":")[2], lane, "m", "0", "notify_worker"
        )
        assert await host.read() == [(lane, "m", "", "notify_worker")]
        await host.respond(ref, lane=lane, last=lane == "d")
        assert await requester.read() == [(lane, "m", ref, "response")]


async def test_a_request_that_is_given_back_unread_keeps_its_attempt(redis: Redis):
    requester = await Process(redis, "a").join()
    host = await Process(redis, "x").join("w")
    ref, waiting = [await requester.ask("w") for _ in range(2)]
    await host.call_once("withdraw", "w")
    other = await Process(redis, "y").join()
    assert await host.call_once("reassign", ref, 1, "0") == "ok"
    await other.host("w")
    assert await other.jobs() == [(ref, 1)]
    await other.respond(ref)
    assert await other.jobs() == [(waiting, 1)]


@pytest.mark.parametrize("command", ["reassign", "disown"])
async def test_the_slot_of_a_job_that_is_given_back_goes_to_the_next(redis: Redis, command: str):
    requester = await Process(redis, "a").join()
    host = await Process(redis, "x").join("w")
    ref, waiting = [await requester.ask("w") for _ in range(2)]
    await host.read()
    await host.call_once(command, ref, 1, "1")
    assert await host.jobs() == [(waiting, 1)]
    other = await Process(redis, "y").join("w")
    assert await other.jobs() == [(ref, 2)]


async def test_a_request_that_cannot_be_read_is_lost_for_its_requester(redis: Redis):
    requester = await Process(redis, "a").join()
    host = await Process(redis, "x").join("w")
    ref = await requester.ask("w")
    assert await host.call_once("reject", ref, 1) == "ok"
    assert await requester.read() == [("d", "l", ref, "unreadable")]


async def test_only_its_owner_gives_back_a_job_or_responds_to_it(redis: Redis):
    requester = await Process(redis, "a").join()
    host = await Process(redis, "x").join("w")
    other = await Process(redis, "y").join()
    ref = await requester.ask("w")
    await host.read()
    assert await other.call_once("disown", ref, 0) == "ok"
    assert await other.call_once("reassign", ref, 1, "1") == "stale"
    assert await other.call_once("reject", ref, 1) == "stale"
    assert await other.respond(ref) == "stale"
    assert await host.respond(ref, attempt=2) == "stale"
    assert await host.respond(ref) == "ok"


async def test_an_audit_names_unknown_jobs_and_jobs_that_the_server_considers_held(redis: Redis):
    requester = await Process(redis, "a").join()
    host = await Process(redis, "x").join("w")
    ref = await requester.ask("w")
    await host.read()
    await requester.call_once("audit", ref.rpartition(":")[2])
    assert await requester.read() == []
    await requester.call_once("audit", ref.rpartition(":")[2], "77")
    assert await requester.read() == [("d", "x", "", "77|")]
    await host.call_once("audit")
    assert await host.read() == [("d", "x", "", f"|{ref}")]


async def test_a_request_behind_many_lost_ones_is_assigned(redis: Redis):
    """The lost requests were held by the only host, which has joined again."""
    jobs = 40
    requester = await Process(redis, "a", takeover=0.2).join()
    first = await Process(redis, "x", uid="stalls", takeover=0.2).join("w", job=jobs)
    for _ in range(jobs):
        await requester.ask("w")
    await first.lease_ends()
    await requester.call("renew")
    fresh = await requester.ask("w")
    back = await Process(redis, "y", uid="stalls", takeover=0.2).join("w", job=jobs)

    async def are_lost() -> bool:
        await requester.call("renew")
        return await redis.exists(f"{PREFIX}:waiting") == 0

    await until_async(are_lost)
    assert await back.jobs() == [(fresh, 1)]
