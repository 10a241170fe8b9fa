"""The script of the channel, called step by step: the affinity of jobs."""

import pytest
from redis.asyncio import Redis
from support.redis.processes import assert_nothing_remains, redis, redis_server
from support.redis.script import PREFIX, Process, script

__all__ = ["redis", "redis_server", "script"]

pytestmark = pytest.mark.usefixtures("script")

AFFINITIES, OLD_AFFINITIES = f"{PREFIX}:homes", f"{PREFIX}:homes:old"


async def pool(redis: Redis, affinity: str | None, **slots: int) -> tuple[Process, ...]:
    """A requester, and two processes that host the worker."""
    requester = await Process(redis, "a").join()
    hosts = [await Process(redis, name).join("w", affinity=affinity, **slots) for name in "xy"]
    return (requester, *hosts)


async def first_job(requester: Process, *hosts: Process, **about: str) -> tuple[Process, Process]:
    """Have a job done. Returns the process that did it, and the other one."""
    ref = await requester.ask("w", **about)
    for host in hosts:
        if await host.jobs() == [(ref, 1)]:
            await host.respond(ref)
            [other] = [each for each in hosts if each is not host]
            return host, other
    raise AssertionError("no process has the job")


async def test_the_jobs_of_one_requester_stay_in_one_process(redis: Redis):
    requester, *hosts = await pool(redis, "requester", job=2)
    for source in ("one", "two", "three"):
        owner, other = await first_job(requester, *hosts, source=source)
        refs = [await requester.ask("w", name, source=source) for name in ("job", "job", "else")]
        assert await owner.moved() == [(ref, False) for ref in refs]
        assert await other.jobs() == []
        for ref in refs:
            await owner.respond(ref)


async def test_the_jobs_of_many_requesters_are_spread_over_the_processes(redis: Redis):
    requester, *hosts = await pool(redis, "requester", job=64)
    for number in range(20):
        await requester.ask("w", source=f"session-{number}")
    assert [len(await host.jobs()) for host in hosts] == [10, 10]


async def test_later_jobs_of_a_requester_do_not_count_as_turns_of_the_processes(redis: Redis):
    requester, *hosts = await pool(redis, "prefer")
    owner_ids = []
    for source in ("one", "two", "three", "four"):
        owner, other = await first_job(requester, *hosts, source=source)
        owner_ids.append(owner.id)
        for _ in range(3):
            ref = await requester.ask("w", source=source)
            assert await owner.moved() == [(ref, False)]
            await owner.respond(ref)
        assert await other.jobs() == []
    assert owner_ids[0] != owner_ids[1]
    assert owner_ids[2:] == owner_ids[:2]


async def test_subscribers_of_the_same_name_in_two_processes_are_two_requesters(redis: Redis):
    one, *hosts = await pool(redis, "requester", job=64)
    two = await Process(redis, "b").join()
    for _ in range(3):
        await one.ask("w")
        await two.ask("w")
    assert {len({ref[0] for ref, _ in await host.jobs()}) for host in hosts} == {1}


async def test_a_job_that_waits_for_its_process_delays_no_other_job(redis: Redis):
    requester, *hosts = await pool(redis, "requester")
    owner, other = await first_job(requester, *hosts, source="one")
    running = await requester.ask("w", source="one")
    waiting = [await requester.ask("w", source="one") for _ in range(40)]
    free = await requester.ask("w", source="two")
    assert await owner.jobs() == [(running, 1)]
    assert await other.jobs() == [(free, 1)]
    behind = await requester.ask("w", source="three")
    await other.respond(free)
    assert await other.jobs() == [(behind, 1)]
    for ref in waiting:
        await owner.respond(running)
        running = ref
        assert await owner.moved() == [(ref, False)]
    assert await other.jobs() == []


async def test_a_job_that_waited_before_its_requester_had_a_process_stays_with_that_process(
    redis: Redis,
):
    requester, *hosts = await pool(redis, "requester")
    taken = [await requester.ask("w", source=name) for name in ("one", "two")]
    waiting = [await requester.ask("w", source="three") for _ in range(2)]
    owners = {ref: host for host in hosts for ref, _ in await host.jobs()}
    await owners[taken[0]].respond(taken[0])
    owner, other = owners[taken[0]], owners[taken[1]]
    assert await owner.jobs() == [(waiting[0], 1)]
    await other.respond(taken[1])
    assert await other.jobs() == []
    await owner.respond(waiting[0])
    assert await owner.jobs() == [(waiting[1], 1)]


async def test_a_job_that_waits_for_its_process_can_be_cancelled(redis: Redis):
    requester, *hosts = await pool(redis, "requester")
    await first_job(requester, *hosts)
    await requester.ask("w")
    waiting = await requester.ask("w")
    assert await requester.cancel(waiting) == "untaken"
    assert [key for key in await redis.keys() if ":queue" in key] == []


async def test_when_the_process_dies_the_next_job_goes_elsewhere_and_says_so(redis: Redis):
    requester, *hosts = await pool(redis, "requester")
    owner, other = await first_job(requester, *hosts)
    await owner.lease_ends()
    await requester.call("renew")
    first, second = await requester.ask("w"), await requester.ask("w")
    assert await other.moved() == [(first, True)]
    await other.respond(first)
    assert await other.moved() == [(second, False)]


async def test_jobs_of_a_process_and_jobs_that_wait_for_it_are_reassigned_when_it_dies(
    redis: Redis,
):
    requester, *hosts = await pool(redis, "requester", job=1)
    owner, other = await first_job(requester, *hosts)
    running, waiting = await requester.ask("w"), await requester.ask("w")
    await owner.lease_ends()
    await requester.call("renew")
    assert await other.moved() == [(running, True)]
    await other.respond(running, 2)
    assert await other.moved() == [(waiting, False)]


@pytest.mark.parametrize("command", ["withdraw", "unhost"])
async def test_jobs_that_wait_for_a_process_that_takes_no_more_go_elsewhere_at_once(
    redis: Redis, command: str
):
    requester, *hosts = await pool(redis, "requester")
    owner, other = await first_job(requester, *hosts)
    await requester.ask("w")
    waiting = await requester.ask("w")
    assert await other.jobs() == []
    await owner.call_once(command, "w")
    assert await other.moved() == [(waiting, True)]


async def test_jobs_that_waited_for_a_process_go_to_one_that_joins_after_its_death(redis: Redis):
    requester = await Process(redis, "a").join()
    owner = await Process(redis, "x").join("w", affinity="requester")
    running, waiting = await requester.ask("w"), await requester.ask("w")
    await owner.lease_ends()
    await requester.call("renew")
    late = await Process(redis, "y").join("w", affinity="requester", job=2)
    begun = await late.moved()
    assert sorted(ref for ref, _ in begun) == [running, waiting]
    assert [moved for _, moved in begun] == [True, False]


async def test_a_process_that_was_declared_dead_and_rejoins_gets_jobs_of_its_requesters_again(
    redis: Redis,
):
    requester, *hosts = await pool(redis, "requester")
    owner, other = await first_job(requester, *hosts)
    await owner.call("leave")
    back = await Process(redis, "z", uid=owner.uid).join("w", affinity="requester")
    ref = await requester.ask("w")
    assert await back.moved() == [(ref, False)]
    assert await other.jobs() == []


async def test_a_requester_that_was_declared_dead_and_rejoins_keeps_its_process(redis: Redis):
    requester, *hosts = await pool(redis, "requester")
    owner, _ = await first_job(requester, *hosts)
    await requester.call("leave")
    back = await Process(redis, "b", uid=requester.uid).join()
    for _ in range(3):
        ref = await back.ask("w")
        assert await owner.moved() == [(ref, False)]
        await owner.respond(ref)


async def test_preferred_jobs_go_elsewhere_rather_than_wait_and_later_return(redis: Redis):
    requester, *hosts = await pool(redis, "prefer")
    owner, other = await first_job(requester, *hosts)
    at_owner, elsewhere, waiting = [await requester.ask("w") for _ in range(3)]
    assert await owner.moved() == [(at_owner, False)]
    assert await other.moved() == [(elsewhere, True)]
    await owner.respond(at_owner)
    assert await owner.moved() == [(waiting, False)]
    await other.respond(elsewhere)
    await owner.respond(waiting)
    ref = await requester.ask("w")
    assert await owner.moved() == [(ref, False)]


@pytest.mark.parametrize("affinity", [None, "prefer", "requester"])
async def test_jobs_with_the_same_affinity_wait_for_one_process_from_every_requester(
    redis: Redis, affinity: str | None
):
    one, *hosts = await pool(redis, affinity)
    two = await Process(redis, "b").join()
    owner, other = await first_job(one, *hosts, affinity="customer 7")
    running = await two.ask("w", affinity="customer 7")
    waiting = await one.ask("w", affinity="customer 7")
    assert await owner.moved() == [(running, False)]
    assert await other.jobs() == []
    await owner.respond(running)
    assert await owner.moved() == [(waiting, False)]


async def test_jobs_of_a_worker_without_affinity_belong_to_no_process(redis: Redis):
    requester, *hosts = await pool(redis, None)
    refs = [await requester.ask("w") for _ in range(2)]
    assert sorted([await host.moved() for host in hosts]) == [[(ref, False)] for ref in refs]
    assert await redis.exists(AFFINITIES) == 0


async def test_a_session_is_lost_with_its_process_and_the_next_begins_elsewhere(redis: Redis):
    requester = await Process(redis, "a").join()
    owner, other = [
        await Process(redis, name).join("w", affinity="requester", once=("attach",))
        for name in "xy"
    ]
    session = await requester.ask("w", "attach")
    if await owner.jobs() != [(session, 1)]:
        owner, other = other, owner
    await owner.lease_ends()
    await requester.call("renew")
    assert [entry[1:] for entry in await requester.read() if entry[1] == "l"] == [
        ("l", session, "once")
    ]
    again = await requester.ask("w", "attach")
    assert await other.moved() == [(again, True)]


# -- keys at the server --------------------------------------------------------------------------


async def test_affinities_are_kept_up_to_the_limit_and_the_most_recently_used_stay(redis: Redis):
    requester, *hosts = await pool(redis, "requester")
    owner, _ = await first_job(requester, *hosts, source="in use")
    await redis.hset(AFFINITIES, mapping={f"w\0session-{n}": "gone" for n in range(49_999)})
    await first_job(requester, *hosts, source="new")
    assert (await redis.hlen(AFFINITIES), await redis.hlen(OLD_AFFINITIES)) == (1, 50_000)
    # An affinity that is used again moves to the new ones.
    ref = await requester.ask("w", source="in use")
    assert await owner.moved() == [(ref, False)]
    assert await redis.hlen(AFFINITIES) == 2


async def test_affinities_live_as_long_as_a_process_renews_its_lease_and_end_with_the_last(
    redis: Redis,
):
    requester, *hosts = await pool(redis, "requester")
    await first_job(requester, *hosts)
    assert 2400 < await redis.ttl(AFFINITIES) <= 2460
    await redis.copy(AFFINITIES, OLD_AFFINITIES)
    for key in (AFFINITIES, OLD_AFFINITIES):
        await redis.expire(key, 10)
    await requester.call("renew")
    assert min(await redis.ttl(AFFINITIES), await redis.ttl(OLD_AFFINITIES)) > 2400
    for process in (requester, *hosts):
        await process.call("leave")
    await assert_nothing_remains(redis)


@pytest.mark.parametrize("affinity", [None, "requester", "prefer"])
async def test_a_job_beside_another_goes_to_another_process_and_moves_no_requester(
    redis: Redis, affinity: str | None
):
    requester, *hosts = await pool(redis, affinity, job=4)
    for _ in range(4):
        ref = await requester.ask("w")
        [owner] = [host for host in hosts if await host.jobs() == [(ref, 1)]]
        [other] = [host for host in hosts if host is not owner]
        # It has fewer free slots than the process that is avoided.
        busy = [await requester.ask("w", source=f"busy {n}", affinity="busy") for n in range(2)]
        hedge = await requester.ask("w", beside=ref)
        assert (hedge, 1) in await other.jobs()
        for job in (ref, *busy, hedge):
            for host in hosts:
                await host.respond(job)
        if affinity is not None:
            assert (await first_job(requester, *hosts))[0] is owner
    await assert_no_jobs(redis)


async def test_a_job_beside_another_goes_to_the_only_process(redis: Redis):
    requester = await Process(redis, "a").join()
    host = await Process(redis, "x").join("w", job=4)
    ref = await requester.ask("w")
    hedge = await requester.ask("w", beside=ref)
    assert await host.jobs() == [(ref, 1), (hedge, 1)]


async def test_a_job_beside_one_that_has_ended_goes_anywhere(redis: Redis):
    requester, *hosts = await pool(redis, None, job=4)
    await first_job(requester, *hosts)
    hedge = await requester.ask("w", beside="a:1")
    assert [(hedge, 1)] in [await host.jobs() for host in hosts]


async def assert_no_jobs(redis: Redis) -> None:
    assert [field async for field, _ in redis.hscan_iter(f"{PREFIX}:proc:a", "job:*")] == []
