"""The script of the channel, called step by step: jobs with keys."""

import json
from typing import Any

import pytest
from pipecat.bus.messages import BusJobRequestMessage
from redis.asyncio import Redis
from support.redis.processes import assert_nothing_remains, redis, redis_server
from support.redis.script import PREFIX, Process, script

from pipecat_jobs._protocol.headers import JobHeaders, encode_headers
from pipecat_jobs.bus.envelope import Envelopes
from pipecat_jobs.bus.wire import WireCodec

__all__ = ["redis", "redis_server", "script"]

pytestmark = pytest.mark.usefixtures("script")

KEYS = f"{PREFIX}:keys"


def sealed(payload: dict[Any, Any] | None) -> str:
    """A request as the bus sends it."""
    message = BusJobRequestMessage(source="a", target="w", job_id="1", payload=payload)
    body = encode_headers(JobHeaders()) + WireCodec().encode(message)
    return Envelopes("c", secret="secret").seal("job", "a", 1, body).decode()


async def ask(process: Process, ship: object, **about: Any) -> str:
    return await process.ask("w", request=sealed({"ship": ship}), **about)


async def pool(redis: Redis, **offer: Any) -> tuple[Process, ...]:
    """Two requesters, and two processes that host the worker."""
    requesters = [await Process(redis, name).join() for name in "ab"]
    options = {"keys": {"job": ["ship"]}, "job": 2, **offer}
    hosts = [await Process(redis, name).join("w", **options) for name in "xy"]
    return (*requesters, *hosts)


async def split(ref: str, *hosts: Process) -> tuple[Process, Process]:
    """Find the process that has a job. Returns it, and the other one."""
    for host, other in (hosts, hosts[::-1]):
        if await host.jobs() == [(ref, 1)]:
            return host, other
    raise AssertionError("no process has the job")


async def test_jobs_of_one_key_go_to_one_process_from_every_requester(redis: Redis):
    one, two, *hosts = await pool(redis)
    ref = await ask(one, 7)
    owner, other = await split(ref, *hosts)
    assert await owner.jobs() == []
    again = await ask(two, 7.0)
    assert await owner.jobs() == [(again, 1)]
    elsewhere = await ask(two, 8)
    assert await other.jobs() == [(elsewhere, 1)]


async def test_jobs_of_one_key_wait_for_the_process_of_that_key(redis: Redis):
    one, two, *hosts = await pool(redis)
    refs = [await ask(one, 7) for _ in range(2)]
    owner, other = await split_all(refs, *hosts)
    waiting = [await ask(two, 7), await ask(one, 7)]
    assert await other.jobs() == await owner.jobs() == []
    await owner.respond(refs[0])
    assert await owner.jobs() == [(waiting[0], 1)]
    await owner.respond(refs[1])
    assert await owner.jobs() == [(waiting[1], 1)]


async def split_all(refs: list[str], *hosts: Process) -> tuple[Process, Process]:
    for host, other in (hosts, hosts[::-1]):
        if await host.jobs() == [(ref, 1) for ref in refs]:
            return host, other
    raise AssertionError("the jobs are not in one process")


async def test_a_key_is_free_once_its_last_job_has_ended(redis: Redis):
    one, _, *hosts = await pool(redis)
    refs = [await ask(one, 7) for _ in range(2)]
    owner, other = await split_all(refs, *hosts)
    for ref in refs:
        assert await redis.hlen(KEYS) == 1
        await owner.respond(ref)
    assert not await redis.exists(KEYS)
    await owner.call("withdraw", "w")
    ref = await ask(one, 7)
    assert await other.jobs() == [(ref, 1)]


async def test_a_key_is_stronger_than_an_affinity(redis: Redis):
    one, two, *hosts = await pool(redis, affinity="requester")
    owner, other = await split(await ask(one, 7, source="s1"), *hosts)
    await split(await ask(two, 8, source="s2"), other, owner)
    ref = await ask(two, 7, source="s2")
    assert await owner.jobs() == [(ref, 1)]
    ref = await ask(one, 8, affinity="mine")
    assert await other.jobs() == [(ref, 1)]


async def test_a_process_that_takes_no_more_requests_keeps_the_keys_of_its_jobs(redis: Redis):
    one, two, *hosts = await pool(redis)
    ref = await ask(one, 7)
    owner, other = await split(ref, *hosts)
    await owner.call("withdraw", "w")
    waiting = await ask(two, 7)
    assert await other.jobs() == []
    await owner.respond(ref)
    assert await other.jobs() == [(waiting, 1)]


async def test_the_jobs_of_a_drained_process_move_together_beginning_with_the_oldest(redis: Redis):
    one, two, *hosts = await pool(redis)
    refs = [await ask(one, 7), await ask(two, 7)]
    owner, other = await split_all(refs, *hosts)
    await owner.call("withdraw", "w")
    third = await ask(one, 7)
    for ref in refs:
        await owner.call_once("reassign", ref, 1, "1")
    moved = await other.jobs()
    assert moved[0] == (refs[0], 2)
    await other.respond(refs[0], attempt=2)
    moved += await other.jobs()
    # A new job may come between them.
    assert sorted(moved) == sorted([(third, 1), *((ref, 2) for ref in refs)])


async def test_the_jobs_of_a_dead_process_move_together(redis: Redis):
    one, two, *hosts = await pool(redis)
    refs = [await ask(one, 7), await ask(two, 7)]
    owner, other = await split_all(refs, *hosts)
    await owner.lease_ends()
    await other.call("renew")
    assert sorted(await other.jobs()) == sorted((ref, 2) for ref in refs)
    assert await redis.hgetall(KEYS) == {f"w\0{key}": other.id for key in await key_names(redis)}


async def key_names(redis: Redis) -> list[str]:
    return [field.rpartition("\0")[2] for field in await redis.hkeys(KEYS)]


@pytest.mark.parametrize(
    "payload",
    [None, {}, {"ship": None}, {"ship": [1]}, {"ship": {"$": "x"}}, {"ship": float("nan")}],
)
async def test_a_request_without_a_key_goes_to_any_process(redis: Redis, payload: dict | None):
    one, _, *hosts = await pool(redis)
    refs = [await one.ask("w", request=sealed(payload)) for _ in range(2)]
    assert [len(await host.jobs()) for host in hosts] == [1, 1]
    assert not await redis.exists(KEYS)
    assert len(refs) == 2


async def test_a_payload_with_other_keys_than_text_has_a_key(redis: Redis):
    one, _, *hosts = await pool(redis)
    ref = await ask(one, 7)
    owner, _ = await split(ref, *hosts)
    again = await one.ask("w", request=sealed({"ship": 7, 1: "one"}))
    assert await owner.jobs() == [(again, 1)]


async def test_an_audit_corrects_the_keys_of_a_process(redis: Redis):
    one, _, *hosts = await pool(redis)
    owner, _ = await split(await ask(one, 7), *hosts)
    [field] = await redis.hkeys(KEYS)
    await redis.hset(f"{PREFIX}:proc:{owner.id}", f"key:{field}", 5)
    await redis.hset(f"{PREFIX}:proc:{owner.id}", "key:w\0gone", 1)
    await redis.hset(KEYS, "w\0gone", owner.id)
    await owner.call_once("audit")
    fields = await redis.hgetall(f"{PREFIX}:proc:{owner.id}")
    assert {name: n for name, n in fields.items() if name.startswith("key:")} == {
        f"key:{field}": "1"
    }
    assert await redis.hgetall(KEYS) == {field: owner.id}


async def test_nothing_of_a_key_remains(redis: Redis):
    processes = await pool(redis)
    await ask(processes[0], 7)
    for process in processes:
        await process.call("leave")
    await assert_nothing_remains(redis)


async def test_an_offer_with_wrong_keys_is_removed(redis: Redis):
    one, _, *hosts = await pool(redis)
    wrong = json.dumps({**json.loads(hosts[0].spec()), "keys": 7})
    # All of them: which offer is read first depends on the ids.
    await redis.hset(f"{PREFIX}:hosts:w", mapping={host.id: wrong for host in hosts})
    about = ("w", "job", "0", 1, sealed({"ship": 7}), "s", "")
    assert await one.call_once("request", *about) == "fenced"
    assert not await redis.exists(f"{PREFIX}:hosts:w")
