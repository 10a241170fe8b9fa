"""The script of the channel, called step by step: lost jobs, leases, and the keys at the server."""

import pytest
from redis.asyncio import Redis
from support.redis.processes import assert_nothing_remains, redis, redis_server
from support.redis.script import KINDS, PREFIX, Process, kinds, script

__all__ = ["redis", "redis_server", "script"]

pytestmark = pytest.mark.usefixtures("script")


# -- jobs whose process has died -----------------------------------------------------------------


async def test_a_lost_job_is_not_reassigned_to_the_process_that_lost_it(redis: Redis):
    requester = await Process(redis, "a").join()
    first = await Process(redis, "x", uid="stalls").join("w")
    ref = await requester.ask("w")
    assert await first.jobs() == [(ref, 1)]
    await first.lease_ends()
    await requester.call("renew")
    back = await Process(redis, "y", uid="stalls").join("w")
    assert await back.jobs() == []
    # Other jobs are assigned, and the lost one does not delay them.
    second = await requester.ask("w")
    assert await back.jobs() == [(second, 1)]
    other = await Process(redis, "z").join("w")
    assert await other.jobs() == [(ref, 2)]


async def test_a_reassigned_job_goes_before_jobs_that_wait(redis: Redis):
    requester = await Process(redis, "a").join()
    first = await Process(redis, "x").join("w")
    ref, later = [await requester.ask("w") for _ in range(2)]
    await first.lease_ends()
    await requester.call("renew")
    second = await Process(redis, "y").join("w")
    assert await second.jobs() == [(ref, 2)]
    await second.respond(ref, 2)
    assert await second.jobs() == [(later, 1)]


async def test_jobs_that_wait_for_another_process_keep_their_order_and_do_not_delay_others(
    redis: Redis,
):
    requester = await Process(redis, "a").join()
    first = await Process(redis, "x", uid="stalls").join("w", job=3)
    lost = [await requester.ask("w") for _ in range(3)]
    await first.read()
    await first.lease_ends()
    await requester.call("renew")
    back = await Process(redis, "y", uid="stalls").join("w")
    fresh = [await requester.ask("w") for _ in range(3)]
    for ref in fresh:
        assert await back.jobs() == [(ref, 1)]
        await back.respond(ref)
    waiting = await redis.lrange(f"{PREFIX}:queue:1:w:job", 0, -1)
    assert sorted(waiting) == lost
    other = await Process(redis, "z").join("w")
    for ref in waiting:
        assert await other.jobs() == [(ref, 2)]
        await other.respond(ref, 2)


@pytest.mark.parametrize("by", ["the requester", "the worker"])
async def test_a_job_that_must_not_run_twice_is_lost_if_its_process_dies_after_the_start(
    redis: Redis, by: str
):
    requester = await Process(redis, "a").join()
    host = await Process(redis, "x").join("w", once=("job",) if by == "the worker" else ())
    ref = await requester.ask("w", once=by == "the requester")
    assert await host.jobs() == [(ref, 1)]
    # A job that is given back unread has not run.
    await host.call_once("withdraw", "w")
    assert await host.call_once("reassign", ref, 1, "0") == "ok"
    other = await Process(redis, "y").join("w")
    assert await other.jobs() == [(ref, 1)]
    await other.lease_ends()
    await requester.call("renew")
    assert ("d", "l", ref, "once") in await requester.read()


async def test_a_request_that_may_have_run_is_not_given_to_a_host_that_runs_it_once(redis: Redis):
    """After a disconnect the requester requests again; the first request may have arrived."""
    requester = await Process(redis, "a").join()
    host = await Process(redis, "x").join("w", once=("job",))
    ref = await requester.ask("w", attempt=2)
    assert await requester.read() == [("d", "l", ref, "once")]
    assert await host.jobs() == []
    await requester.call("leave")
    await host.call("leave")
    await assert_nothing_remains(redis)


async def test_attempts_continue_from_the_number_that_the_requester_gives(redis: Redis):
    requester = await Process(redis, "a").join()
    host = await Process(redis, "x").join("w")
    ref = await requester.ask("w", attempt=2)
    assert await host.jobs() == [(ref, 2)]
    assert await host.respond(ref, 1) == "stale"
    assert await host.respond(ref, 2) == "ok"


async def test_a_job_is_lost_after_the_maximum_number_of_processes(redis: Redis):
    requester = await Process(redis, "a").join()
    ref = await requester.ask("w")
    for attempt in (1, 2, 3):
        host = await Process(redis, f"x{attempt}").join("w")
        assert await host.jobs() == [(ref, attempt)]
        await host.lease_ends()
        await requester.call("renew")
    lost = [entry for entry in await requester.read() if entry[1] == "l"]
    assert lost == [("d", "l", ref, "attempts")]


async def test_a_cancelled_job_is_not_reassigned(redis: Redis):
    requester = await Process(redis, "a").join()
    host = await Process(redis, "x").join("w")
    other = await Process(redis, "y").join()
    ref = await requester.ask("w")
    assert await requester.cancel(ref) == "ok"
    assert await host.read() == [("u", "m", ref, "cancel"), ("d", "j", ref, "1")]
    await other.host("w")
    await host.lease_ends()
    await requester.call("renew")
    assert await other.jobs() == []
    assert ("d", "l", ref, "cancelled") in await requester.read()
    assert await redis.keys("*:jobs:*") == []


async def test_messages_that_a_process_sent_before_its_job_is_lost_are_read_first(redis: Redis):
    requester = await Process(redis, "a", max_attempts=1).join()
    host = await Process(redis, "x").join("w")
    ref = await requester.ask("w")
    await host.respond(ref, last=False)
    await host.lease_ends()
    await requester.call("renew")
    [notice, *rest] = await requester.read()
    assert notice[:2] == ("u", "g")
    assert rest == [("d", "m", ref, "response"), ("d", "l", ref, "attempts")]


async def test_a_worker_is_notified_when_its_requesters_process_has_died(redis: Redis):
    requester, other = [await Process(redis, name).join() for name in "ab"]
    host = await Process(redis, "x").join("w")
    ref = await requester.ask("w")
    await requester.ask("w")
    waiting = await other.ask("w")
    await requester.lease_ends()
    await other.call("renew")
    # A request of that process that has not begun will not begin.
    assert await host.read() == [
        ("u", "c", ref, ""),
        ("u", "g", "a", "runner-a"),
        ("d", "j", ref, "1"),
        ("d", "j", waiting, "1"),
    ]
    assert await host.respond(ref) == "stale"
    assert await redis.keys("*:queue*") == []


async def test_a_dead_process_leaves_nothing_behind_and_other_processes_are_notified(redis: Redis):
    one, two = [await Process(redis, name).join("w", "v") for name in "ab"]
    await one.ask("w")
    await one.ask("w")
    await two.ask("w")
    await one.lease_ends()
    await two.call("renew")
    assert [key for key in await redis.keys() if ":a" in key] == []
    for kind in ("names", "hosts"):
        keys = await redis.keys(f"*:{kind}:*")
        assert len(keys) == 2
        for key in keys:
            who = redis.smembers(key) if kind == "names" else redis.hkeys(key)
            assert set(await who) == {"b"}
    assert ("u", "g", "a", "runner-a") in await two.read()
    assert await two.call("roster") == ["runner-b"]


async def test_a_process_that_was_declared_dead_can_send_nothing(redis: Redis):
    one, two = [await Process(redis, name).join() for name in "ab"]
    await one.lease_ends()
    await two.call("renew")
    assert await one.call_once("host", "w", "") == "fenced"
    assert await one.call("renew") == "fenced"
    assert await one.call_once("route", "d", "", "hello", "0") == "fenced"
    assert [entry for entry in await two.read() if entry[1] == "m"] == []
    # The server has forgotten the number of the last call.
    await one.join()
    assert await one.call_once("mark", 1) == "ok"


async def test_a_process_that_died_before_it_offered_a_worker_gets_no_requests(redis: Redis):
    requester, late = [await Process(redis, name).join() for name in "ab"]
    await late.lease_ends()
    await requester.call("renew")
    assert await late.call("host", "w", late.spec()) == "fenced"
    ref = await requester.ask("w")
    host = await Process(redis, "x").join("w")
    assert await host.jobs() == [(ref, 1)]


async def test_no_messages_are_kept_for_a_process_that_is_not_on_the_channel(redis: Redis):
    one = await Process(redis, "a").join()
    await redis.sadd(f"{PREFIX}:names:w", "nobody")
    await one.call_once("route", "d", "w", "hello", "0")
    assert await redis.keys("*:in:nobody:*") == []


async def test_a_process_that_reads_nothing_is_declared_dead_and_its_jobs_are_reassigned(
    redis: Redis,
):
    sender = await Process(redis, "a", inbox=3).join()
    host = await Process(redis, "x", inbox=3).join("w")
    ref = await sender.ask("w")
    other = await Process(redis, "y", inbox=3).join("w")
    for _ in range(2):
        await sender.call_once("route", "d", "w", "hello", "0")
        await other.read()
    assert await host.call("renew") == "ok"
    await sender.call_once("route", "d", "w", "one too many", "0")
    assert await host.call("renew") == "fenced"
    assert (ref, 2) in await other.jobs()
    assert ("u", "g", "x", "runner-x") in await sender.read()


# -- requests that no process can take -----------------------------------------------------------


async def test_a_request_that_finds_no_host_in_time_is_lost_and_other_requests_are_not(
    redis: Redis,
):
    requester = await Process(redis, "a", takeover=0).join()
    full = await Process(redis, "x").join("full")
    running, queued = [await requester.ask("full") for _ in range(2)]
    lost = await requester.ask("nobody's")
    assert await redis.zrange(f"{PREFIX}:waiting", 0, -1) == [lost]
    assert await requester.call("renew") == "ok"
    assert await requester.read() == [("d", "l", lost, "unhosted")]
    assert await full.jobs() == [(running, 1)]
    await full.respond(running)
    assert await full.jobs() == [(queued, 1)]
    await full.respond(queued)
    await requester.call("leave")
    await full.call("leave")
    await assert_nothing_remains(redis)


async def test_a_request_whose_time_to_find_a_host_is_over_still_waits_for_a_known_host(
    redis: Redis,
):
    requester = await Process(redis, "a", takeover=0).join()
    refs = [await requester.ask("w") for _ in range(2)]
    host = await Process(redis, "x").join("w")
    await requester.call("renew")
    assert [entry for entry in await requester.read() if entry[1] == "l"] == []
    assert await redis.exists(f"{PREFIX}:waiting") == 0
    for ref in refs:
        assert await host.jobs() == [(ref, 1)]
        await host.respond(ref)


async def test_hosts_that_join_and_leave_do_not_extend_the_time_of_a_request(redis: Redis):
    requester = await Process(redis, "a").join()
    ref = await requester.ask("w")
    until = await redis.zscore(f"{PREFIX}:waiting", ref)
    host = await Process(redis, "x", takeover=1200).join()
    await host.call_once("withdraw", "w")
    assert await redis.zscore(f"{PREFIX}:waiting", ref) == until


async def test_a_job_whose_only_other_host_leaves_is_lost_in_time(redis: Redis):
    requester = await Process(redis, "a", takeover=0).join()
    first = await Process(redis, "x", uid="stalls", takeover=0).join("w")
    ref = await requester.ask("w")
    await first.lease_ends()
    other = await Process(redis, "y", takeover=0).join("w")
    busy = await requester.ask("w")
    assert await other.jobs() == [(busy, 1)]
    await requester.call("renew")
    await Process(redis, "z", uid="stalls", takeover=0).join("w")
    await requester.call("renew")
    assert [entry for entry in await requester.read() if entry[1] == "l"] == []
    await other.call("leave")
    await requester.call("renew")
    assert ("d", "l", ref, "unhosted") in await requester.read()


async def test_requests_that_wait_for_a_slot_are_lost_once_no_host_is_left(redis: Redis):
    requester = await Process(redis, "a", takeover=0).join()
    host = await Process(redis, "x", takeover=0).join("w")
    running, waiting = [await requester.ask("w") for _ in range(2)]
    await host.call_once("withdraw", "w")
    await requester.call("renew")
    assert await requester.read() == [("d", "l", waiting, "unhosted")]
    assert await host.respond(running) == "ok"


async def test_a_request_that_was_taken_has_no_time_limit_to_find_a_host(redis: Redis):
    requester = await Process(redis, "a").join()
    ref = await requester.ask("w")
    assert await redis.zscore(f"{PREFIX}:waiting", ref)
    host = await Process(redis, "x").join("w")
    assert await host.jobs() == [(ref, 1)]
    assert await redis.exists(f"{PREFIX}:waiting") == 0


async def test_a_request_that_is_cancelled_while_it_waits_is_removed(redis: Redis):
    requester = await Process(redis, "a").join()
    ref = await requester.ask("w")
    assert await requester.cancel(ref) == "untaken"
    assert await requester.cancel(ref) == "over"
    assert await kinds(redis) == {"members", "proc", "in", "beat"}
    host = await Process(redis, "x").join("w")
    assert await host.jobs() == []


# -- what the server has lost --------------------------------------------------------------------


async def lose_jobs_of(redis: Redis, process: Process) -> None:
    """A server that runs out of memory may evict any key that has a time to live."""
    key = f"{PREFIX}:proc:{process.id}"
    assert await redis.hdel(key, *(f for f in await redis.hkeys(key) if f.startswith("job:")))


async def test_a_forgotten_job_of_a_dead_process_does_not_block_its_other_jobs(redis: Redis):
    one, two = [await Process(redis, name).join() for name in "ab"]
    host = await Process(redis, "x").join("w", job=5)
    refs = [await requester.ask("w") for requester in (one, two, one, two)]
    await lose_jobs_of(redis, one)
    await host.lease_ends()
    await one.call("renew")
    replacement = await Process(redis, "y").join("w", job=5)
    assert sorted(await replacement.jobs()) == [(refs[1], 2), (refs[3], 2)]
    await one.call("leave")
    assert [key for key in await redis.keys() if key.endswith((":a", ":x"))] == []


async def test_a_forgotten_job_that_waits_for_a_slot_does_not_block_others(redis: Redis):
    one, two = [await Process(redis, name).join() for name in "ab"]
    host = await Process(redis, "x").join("w")
    running, _, waiting = [await requester.ask("w") for requester in (two, one, two)]
    await lose_jobs_of(redis, one)
    await host.read()
    await host.respond(running)
    assert await host.jobs() == [(waiting, 1)]


async def test_a_forgotten_job_that_waits_for_a_host_does_not_stop_others_from_being_lost(
    redis: Redis,
):
    one, two = [await Process(redis, name, takeover=0).join() for name in "ab"]
    await one.ask("w")
    waiting = await two.ask("w")
    await lose_jobs_of(redis, one)
    assert await one.call("renew") == "ok"
    assert await two.read() == [("d", "l", waiting, "unhosted")]
    assert await redis.exists(f"{PREFIX}:waiting") == 0


@pytest.mark.parametrize("lost", ["held", "members"])
async def test_a_running_job_whose_hold_was_forgotten_is_lost_and_stopped(redis: Redis, lost: str):
    requester, host = await Process(redis, "a").join(), await Process(redis, "x").join("w")
    ref = await requester.ask("w")
    await host.read()
    if lost == "held":
        await redis.hdel(f"{PREFIX}:proc:x", f"held:{ref}")
    else:
        await redis.zrem(f"{PREFIX}:members", "x")
    await requester.call_once("audit", number := ref.rpartition(":")[2])
    assert await requester.read() == [("d", "x", "", f"{number}|")]
    assert await host.read() == [("u", "c", ref, "")]
    assert await host.respond(ref) == "stale"
    await host.join("w")
    await host.call_once("audit")
    again = await requester.ask("w")
    assert await host.jobs() == [(again, 1)]


@pytest.mark.parametrize("key", ["queues:w", "queue:1:w:job", "hosts:w", "waiting"])
async def test_a_waiting_job_that_can_no_longer_be_assigned_is_lost(redis: Redis, key: str):
    requester = await Process(redis, "a").join()
    host = await Process(redis, "x").join("w") if key != "waiting" else None
    if host:
        await requester.ask("w")
    ref = await requester.ask("w")
    number = ref.rpartition(":")[2]
    await requester.call_once("audit", number)
    assert await requester.read() == []
    await redis.delete(f"{PREFIX}:{key}")
    await requester.call_once("audit", number)
    assert await requester.read() == [("d", "x", "", f"{number}|")]
    await requester.call_once("audit", number)
    assert await requester.read() == [("d", "x", "", f"{number}|")]
    assert not await redis.hexists(f"{PREFIX}:proc:a", f"job:{number}")


async def test_slots_are_recounted_from_the_held_jobs(redis: Redis):
    requester, host = await Process(redis, "a").join(), await Process(redis, "x").join("w", job=2)
    ref = await requester.ask("w")
    await redis.hset(f"{PREFIX}:proc:x", "load:w\0job", 2)
    waiting = await requester.ask("w")
    assert await host.jobs() == [(ref, 1)]
    await host.call_once("audit")
    await host.host("w", job=2)
    assert ("d", "j", waiting, "1") in await host.read()


@pytest.mark.parametrize("key", ["proc:a", "in:a:u", "in:a:d"])
async def test_a_process_with_a_lost_key_has_to_join_again(redis: Redis, key: str):
    process = await Process(redis, "a").join()
    assert await process.call("renew") == "ok"
    await redis.delete(f"{PREFIX}:{key}")
    assert await process.call("renew") == "fenced"


# -- leases --------------------------------------------------------------------------------------


async def test_the_time_that_the_server_was_down_counts_against_no_lease(redis: Redis):
    one, two = [await Process(redis, name).join() for name in "ab"]
    await one.lease_ends()
    await redis.set(f"{PREFIX}:beat", 1)
    assert await two.call("renew") == "ok"
    assert await one.call("renew") == "ok"


async def test_no_lease_is_shortened_by_the_time_that_the_server_was_down(redis: Redis):
    one = await Process(redis, "a").join()
    await Process(redis, "b", lease=1200).join()
    before = await redis.zscore(f"{PREFIX}:members", "b")
    await redis.set(f"{PREFIX}:beat", 1)
    await one.call("renew")
    assert await redis.zscore(f"{PREFIX}:members", "b") == before


@pytest.mark.parametrize("command", ["join", "renew"])
async def test_the_first_process_to_call_after_the_server_was_down_extends_the_leases(
    redis: Redis, command: str
):
    one, two = [await Process(redis, name).join() for name in "ab"]
    before = await redis.zscore(f"{PREFIX}:members", "b")
    await one.lease_ends()
    await redis.set(f"{PREFIX}:beat", 1)
    await two.call(command, *(("uid", "runner") if command == "join" else ()))
    assert await redis.zscore(f"{PREFIX}:members", "a") >= before


async def test_a_lease_that_ends_while_the_server_is_up_has_ended(redis: Redis):
    one, two = [await Process(redis, name).join() for name in "ab"]
    await two.call("renew")
    await one.lease_ends()
    await two.call("renew")
    assert await one.call("renew") == "fenced"


async def test_renewing_a_lease_restores_its_full_time(redis: Redis):
    one, two = [await Process(redis, name).join() for name in "ab"]
    before = await redis.zscore(f"{PREFIX}:members", "a")
    await one.lease_ends()
    assert await one.call("renew") == "ok"
    await two.call("renew")
    assert await redis.zscore(f"{PREFIX}:members", "a") >= before


# -- keys at the server --------------------------------------------------------------------------


async def test_keys_live_as_long_as_a_process_renews_them(redis: Redis):
    host = await Process(redis, "a").join("w")
    for worker in ("w", "w", "nobody's"):
        await host.ask(worker)
    await host.call_once("route", "u", "w", "hello", "1")
    keys = set(await redis.keys())
    assert {key.split(":")[2] for key in keys} == KINDS - {"turns"}
    for key in keys:
        assert 2400 < await redis.ttl(key) <= 2460
        await redis.expire(key, 10)
    await host.call("renew")
    # The next request starts a new count.
    of_requests = {key for key in keys if key.endswith(":waiting") or "nobody" in key}
    assert {key for key in keys if await redis.ttl(key) <= 10} == of_requests


async def test_the_last_process_to_leave_leaves_nothing(redis: Redis):
    one, two = [await Process(redis, name).join("w") for name in "ab"]
    await one.ask("w")
    await one.call("leave")
    assert await redis.exists(f"{PREFIX}:beat") == 1
    await two.call("leave")
    await assert_nothing_remains(redis)


async def test_a_worker_name_that_is_withdrawn_is_removed(redis: Redis):
    one = await Process(redis, "a").join("w")
    two = await Process(redis, "b").join()
    await one.respond(await two.ask("w"))
    for process in (one, two):
        await process.read()
    await one.call_once("unhost", "w")
    assert await kinds(redis) == {"members", "proc", "in", "beat"}
    await two.ask("w")
    await two.call_once("route", "d", "w", "hello", "0")
    assert await one.read() == []


async def test_a_job_that_has_ended_leaves_nothing(redis: Redis):
    requester = await Process(redis, "a").join()
    host = await Process(redis, "x").join("w")
    before, kept = await kinds(redis), await fields(redis)
    refs = [await requester.ask("w") for _ in range(2)]
    for ref in refs:
        await host.respond(ref)
    await host.read()
    await requester.read()
    assert await kinds(redis) == before
    assert await fields(redis) == kept | {"busy"}


async def test_the_turn_of_hosts_is_kept_while_there_are_hosts(redis: Redis):
    requester = await Process(redis, "a").join()
    hosts = [await Process(redis, name).join("w") for name in "xy"]
    turns = f"{PREFIX}:turns"
    await requester.ask("w")
    assert 2400 < await redis.ttl(turns) <= 2460
    for host in hosts:
        assert await redis.hexists(turns, "w")
        await host.call_once("unhost", "w")
    assert not await redis.exists(turns)


async def fields(redis: Redis) -> set[str]:
    """The fields that the server keeps of processes."""
    found = [await redis.hkeys(key) for key in await redis.keys("*:proc:*")]
    return {field for fields in found for field in fields}
