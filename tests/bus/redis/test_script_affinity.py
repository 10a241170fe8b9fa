"""The channel's script, called step by step: jobs that belong in one process."""

import pytest
from redis.asyncio import Redis
from support.redis.processes import nothing_remains, redis, redis_server
from support.redis.script import PREFIX, Process, script

__all__ = ["redis", "redis_server", "script"]

pytestmark = pytest.mark.usefixtures("script")

HOMES, OLD_HOMES = f"{PREFIX}:homes", f"{PREFIX}:homes:old"


async def pool(redis: Redis, affinity: str | None, **rooms: int) -> tuple[Process, ...]:
    """A requester, and two processes that host the worker."""
    asker = await Process(redis, "a").join()
    hosts = [await Process(redis, name).join("w", affinity=affinity, **rooms) for name in "xy"]
    return (asker, *hosts)


async def first_job(asker: Process, *hosts: Process, **about: str) -> tuple[Process, Process]:
    """Have a job done. Gives the process that did it and the other one."""
    ref = await asker.ask("w", **about)
    for host in hosts:
        if await host.jobs() == [(ref, 1)]:
            await host.answer(ref)
            [other] = [each for each in hosts if each is not host]
            return host, other
    raise AssertionError("no process has the job")


async def test_the_jobs_of_one_requester_stay_in_one_process(redis: Redis):
    asker, *hosts = await pool(redis, "requester", job=2)
    for source in ("one", "two", "three"):
        home, other = await first_job(asker, *hosts, source=source)
        refs = [await asker.ask("w", name, source=source) for name in ("job", "job", "else")]
        assert await home.moved() == [(ref, False) for ref in refs]
        assert await other.jobs() == []
        for ref in refs:
            await home.answer(ref)


async def test_the_jobs_of_many_requesters_are_spread_over_the_processes(redis: Redis):
    asker, *hosts = await pool(redis, "requester", job=64)
    for number in range(20):
        await asker.ask("w", source=f"session-{number}")
    assert [len(await host.jobs()) for host in hosts] == [10, 10]


async def test_later_jobs_of_a_requester_do_not_count_as_turns_of_the_processes(redis: Redis):
    asker, *hosts = await pool(redis, "prefer")
    homes = []
    for source in ("one", "two", "three", "four"):
        home, other = await first_job(asker, *hosts, source=source)
        homes.append(home.id)
        for _ in range(3):
            ref = await asker.ask("w", source=source)
            assert await home.moved() == [(ref, False)]
            await home.answer(ref)
        assert await other.jobs() == []
    assert homes[0] != homes[1]
    assert homes[2:] == homes[:2]


async def test_subscribers_of_the_same_name_in_two_processes_are_two_requesters(redis: Redis):
    one, *hosts = await pool(redis, "requester", job=64)
    two = await Process(redis, "b").join()
    for _ in range(3):
        await one.ask("w")
        await two.ask("w")
    assert {len({ref[0] for ref, _ in await host.jobs()}) for host in hosts} == {1}


async def test_a_job_that_waits_for_its_process_delays_no_other_job(redis: Redis):
    asker, *hosts = await pool(redis, "requester")
    home, other = await first_job(asker, *hosts, source="one")
    running = await asker.ask("w", source="one")
    waiting = [await asker.ask("w", source="one") for _ in range(40)]
    free = await asker.ask("w", source="two")
    assert await home.jobs() == [(running, 1)]
    assert await other.jobs() == [(free, 1)]
    behind = await asker.ask("w", source="three")
    await other.answer(free)
    assert await other.jobs() == [(behind, 1)]
    for ref in waiting:
        await home.answer(running)
        running = ref
        assert await home.moved() == [(ref, False)]
    assert await other.jobs() == []


async def test_a_job_that_waited_before_its_requester_had_a_process_stays_with_that_process(
    redis: Redis,
):
    asker, *hosts = await pool(redis, "requester")
    taken = [await asker.ask("w", source=name) for name in ("one", "two")]
    waiting = [await asker.ask("w", source="three") for _ in range(2)]
    owners = {ref: host for host in hosts for ref, _ in await host.jobs()}
    await owners[taken[0]].answer(taken[0])
    home, other = owners[taken[0]], owners[taken[1]]
    assert await home.jobs() == [(waiting[0], 1)]
    await other.answer(taken[1])
    assert await other.jobs() == []
    await home.answer(waiting[0])
    assert await home.jobs() == [(waiting[1], 1)]


async def test_a_job_that_waits_for_its_process_can_be_cancelled(redis: Redis):
    asker, *hosts = await pool(redis, "requester")
    await first_job(asker, *hosts)
    await asker.ask("w")
    waiting = await asker.ask("w")
    assert await asker.cancel(waiting) == "untaken"
    assert [key for key in await redis.keys() if ":queue" in key] == []


async def test_when_the_process_dies_the_next_job_goes_elsewhere_and_says_so(redis: Redis):
    asker, *hosts = await pool(redis, "requester")
    home, other = await first_job(asker, *hosts)
    await home.lease_ends()
    await asker.call("renew")
    first, second = await asker.ask("w"), await asker.ask("w")
    assert await other.moved() == [(first, True)]
    await other.answer(first)
    assert await other.moved() == [(second, False)]


async def test_jobs_of_a_process_and_jobs_that_wait_for_it_are_reassigned_when_it_dies(
    redis: Redis,
):
    asker, *hosts = await pool(redis, "requester", job=1)
    home, other = await first_job(asker, *hosts)
    running, waiting = await asker.ask("w"), await asker.ask("w")
    await home.lease_ends()
    await asker.call("renew")
    assert await other.moved() == [(running, True)]
    await other.answer(running, 2)
    assert await other.moved() == [(waiting, False)]


@pytest.mark.parametrize("command", ["withdraw", "unhost"])
async def test_jobs_that_wait_for_a_process_that_takes_no_more_go_elsewhere_at_once(
    redis: Redis, command: str
):
    asker, *hosts = await pool(redis, "requester")
    home, other = await first_job(asker, *hosts)
    await asker.ask("w")
    waiting = await asker.ask("w")
    assert await other.jobs() == []
    await home.say(command, "w")
    assert await other.moved() == [(waiting, True)]


async def test_jobs_that_waited_for_a_process_go_to_one_that_joins_after_its_death(redis: Redis):
    asker = await Process(redis, "a").join()
    home = await Process(redis, "x").join("w", affinity="requester")
    running, waiting = await asker.ask("w"), await asker.ask("w")
    await home.lease_ends()
    await asker.call("renew")
    late = await Process(redis, "y").join("w", affinity="requester", job=2)
    begun = await late.moved()
    assert sorted(ref for ref, _ in begun) == [running, waiting]
    assert [moved for _, moved in begun] == [True, False]


async def test_a_process_that_was_declared_dead_and_rejoins_gets_jobs_of_its_requesters_again(
    redis: Redis,
):
    asker, *hosts = await pool(redis, "requester")
    home, other = await first_job(asker, *hosts)
    await home.call("leave")
    back = await Process(redis, "z", uid=home.uid).join("w", affinity="requester")
    ref = await asker.ask("w")
    assert await back.moved() == [(ref, False)]
    assert await other.jobs() == []


async def test_a_requester_that_was_declared_dead_and_rejoins_keeps_its_process(redis: Redis):
    asker, *hosts = await pool(redis, "requester")
    home, _ = await first_job(asker, *hosts)
    await asker.call("leave")
    back = await Process(redis, "b", uid=asker.uid).join()
    for _ in range(3):
        ref = await back.ask("w")
        assert await home.moved() == [(ref, False)]
        await home.answer(ref)


async def test_preferred_jobs_go_elsewhere_rather_than_wait_and_later_return(redis: Redis):
    asker, *hosts = await pool(redis, "prefer")
    home, other = await first_job(asker, *hosts)
    at_home, elsewhere, waiting = [await asker.ask("w") for _ in range(3)]
    assert await home.moved() == [(at_home, False)]
    assert await other.moved() == [(elsewhere, True)]
    await home.answer(at_home)
    assert await home.moved() == [(waiting, False)]
    await other.answer(elsewhere)
    await home.answer(waiting)
    ref = await asker.ask("w")
    assert await home.moved() == [(ref, False)]


@pytest.mark.parametrize("affinity", [None, "prefer", "requester"])
async def test_jobs_with_the_same_affinity_wait_for_one_process_from_every_requester(
    redis: Redis, affinity: str | None
):
    one, *hosts = await pool(redis, affinity)
    two = await Process(redis, "b").join()
    home, other = await first_job(one, *hosts, affinity="customer 7")
    running = await two.ask("w", affinity="customer 7")
    waiting = await one.ask("w", affinity="customer 7")
    assert await home.moved() == [(running, False)]
    assert await other.jobs() == []
    await home.answer(running)
    assert await home.moved() == [(waiting, False)]


async def test_jobs_of_a_worker_without_affinity_belong_to_no_process(redis: Redis):
    asker, *hosts = await pool(redis, None)
    refs = [await asker.ask("w") for _ in range(2)]
    assert sorted([await host.moved() for host in hosts]) == [[(ref, False)] for ref in refs]
    assert await redis.exists(HOMES) == 0


async def test_a_session_is_lost_with_its_process_and_the_next_begins_elsewhere(redis: Redis):
    asker = await Process(redis, "a").join()
    home, other = [
        await Process(redis, name).join("w", affinity="requester", once=("attach",))
        for name in "xy"
    ]
    session = await asker.ask("w", "attach")
    if await home.jobs() != [(session, 1)]:
        home, other = other, home
    await home.lease_ends()
    await asker.call("renew")
    assert [entry[1:] for entry in await asker.read() if entry[1] == "l"] == [
        ("l", session, "once")
    ]
    again = await asker.ask("w", "attach")
    assert await other.moved() == [(again, True)]


# -- what is kept --------------------------------------------------------------------------------


async def test_affinities_are_kept_up_to_the_limit_and_the_most_recently_used_stay(redis: Redis):
    asker, *hosts = await pool(redis, "requester")
    home, _ = await first_job(asker, *hosts, source="in use")
    await redis.hset(HOMES, mapping={f"w\0session-{n}": "gone" for n in range(49_999)})
    await first_job(asker, *hosts, source="new")
    assert (await redis.hlen(HOMES), await redis.hlen(OLD_HOMES)) == (1, 50_000)
    # One that is needed again is kept with the new ones.
    ref = await asker.ask("w", source="in use")
    assert await home.moved() == [(ref, False)]
    assert await redis.hlen(HOMES) == 2


async def test_affinities_live_as_long_as_a_process_renews_its_lease_and_end_with_the_last(
    redis: Redis,
):
    asker, *hosts = await pool(redis, "requester")
    await first_job(asker, *hosts)
    assert 2400 < await redis.ttl(HOMES) <= 2460
    await redis.copy(HOMES, OLD_HOMES)
    for key in (HOMES, OLD_HOMES):
        await redis.expire(key, 10)
    await asker.call("renew")
    assert min(await redis.ttl(HOMES), await redis.ttl(OLD_HOMES)) > 2400
    for process in (asker, *hosts):
        await process.call("leave")
    await nothing_remains(redis)
