"""The rights that a user of the server needs, and what happens without them."""

import asyncio
import re
from pathlib import Path

import pytest
from loguru import logger
from redis.asyncio import Redis
from support.redis.processes import (
    Member,
    ShortLeaseMember,
    assert_nothing_remains,
    redis,
    redis_server,
    until,
    until_async,
)
from support.workers import Requester, Responder

from pipecat_jobs import BusUnavailableError
from pipecat_jobs.bus.redis import EmbeddedRedis

__all__ = ["redis", "redis_server"]

PAGE = Path(__file__).parents[3] / "docs/how-to/distributed.md"


@pytest.fixture
async def user(redis_server: EmbeddedRedis, redis: Redis) -> str:
    """The URL of a server, for a user with the rights that the documentation names."""
    [rights] = re.findall(r"ACL user for the bus: `([^`]+)`, keys `([^`]+)`", PAGE.read_text())
    await redis.execute_command("ACL", "SETUSER", "bus", "on", ">pw", *" ".join(rights).split())
    return redis_server.url.replace("unix://", "unix://bus:pw@")


async def test_a_user_with_the_documented_rights_is_enough(user: str, redis: Redis):
    async with Member(user, requester := Requester()) as member, Member(user, Responder()):
        await member.wait_until_known("responder")
        assert await requester.ask("responder", "echo", timeout=60)
        unprivileged = Redis.from_url(user)
        with pytest.raises(Exception, match="permission"):
            await unprivileged.set("other", "1")
        await unprivileged.aclose()
    await assert_nothing_remains(redis)


@pytest.mark.parametrize("command", ["xread", "xtrim", "evalsha"])
async def test_a_process_that_lacks_a_right_is_an_error_at_the_start_that_says_so(
    user: str, redis: Redis, command: str
):
    await redis.execute_command("ACL", "SETUSER", "bus", f"-{command}")
    with pytest.raises(BusUnavailableError, match=f"(?i)permission.*{command}"):
        await Member(user, Responder(), start_timeout=0.3).runner.run()


async def test_the_jobs_of_a_process_that_may_no_longer_read_are_reassigned_and_it_says_so(
    user: str, redis_server: EmbeddedRedis, redis: Redis
):
    refused_worker, other, requester, waits = (
        Responder(),
        Responder(),
        Requester(),
        Requester("waits"),
    )
    errors: list[str] = []
    sink = logger.add(errors.append, level="ERROR")
    async with (
        ShortLeaseMember(redis_server.url, requester, Responder("elsewhere")) as member,
        ShortLeaseMember(user, refused_worker, waits) as refused,
    ):
        await refused.wait_until_known("elsewhere")
        asking = await requester.request_job("responder", name="wait")
        assert await refused_worker.started.get() == asking
        await redis.execute_command("ACL", "SETUSER", "bus", "-xread")
        async with ShortLeaseMember(redis_server.url, other):
            # A read that is already waiting goes on until a message arrives.
            await refused.wait_until_caught_up()
            assert await other.started.get() == asking
            await until(lambda: refused_worker.cancelled)
            assert (refused_worker.cancelled, refused.bus.stats.expulsions) == ([asking], 1)
            # A request made now is sent once the process can read again.
            responding = asyncio.create_task(waits.ask("elsewhere", "echo", timeout=20))
            await asyncio.sleep(0)
            await redis.execute_command("ACL", "SETUSER", "bus", "+xread")
            assert (await responding)["from"] == "elsewhere"
        await member.wait_until_known("responder")
        assert await requester.ask("responder", "echo", timeout=10)
    logger.remove(sink)
    assert len([each for each in errors if "refuses reads" in each]) == 1
    await assert_nothing_remains(redis)


async def test_a_process_that_was_not_allowed_to_read_joins_again_once(
    redis_server: EmbeddedRedis, redis: Redis
):
    members = "pipecat-jobs:{pipecat}:members"

    async def is_renewed() -> bool:
        return await redis.zscore(members, process.id) not in (None, renewed_at)

    async with ShortLeaseMember(redis_server.url, Responder()) as member:
        await member.wait_until_caught_up()
        process = member.bus._process
        assert process is not None
        renewed_at = await redis.zscore(members, process.id)
        await until_async(is_renewed)
        # This takes longer than a lease, and no message arrives in that time.
        process._refused_at = -100.0
        await until(lambda: member.bus.stats.expulsions)
        for _ in range(3):
            renewed_at = await redis.zscore(members, process.id)
            await until_async(is_renewed)
        assert member.bus.stats.expulsions == 1
