"""An error about a refusal of the server says what to do."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from loguru import logger
from redis.asyncio import Redis
from redis.exceptions import (
    AskError,
    ClusterDownError,
    MovedError,
    NoPermissionError,
    OutOfMemoryError,
    ResponseError,
)
from support.bot_process import free_port
from support.redis.processes import Member, redis, redis_server, server_with, until
from support.workers import Requester, Responder

from pipecat_jobs import BusUnavailableError, RedisModeError
from pipecat_jobs.bus.redis import EmbeddedRedis
from pipecat_jobs.bus.redis.embedded import find_server
from pipecat_jobs.bus.redis.process import Process
from pipecat_jobs.bus.redis.refusals import explain, is_of_cluster

__all__ = ["redis", "redis_server"]


@contextlib.asynccontextmanager
async def sentinel(folder: Path) -> AsyncIterator[str]:
    """A Redis Sentinel that watches no server; it may still be starting."""
    config, port = folder / "sentinel.conf", free_port()
    # A Sentinel writes its state into its configuration, and does not start without one.
    config.write_text(f"port {port}\nbind 127.0.0.1\ndir {folder}\n")
    process = await asyncio.create_subprocess_exec(
        *(find_server(), str(config), "--sentinel"), stdout=asyncio.subprocess.DEVNULL
    )
    try:
        yield f"redis://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def test_a_node_of_a_cluster_is_refused_at_the_start(tmp_path: Path):
    async with server_with(tmp_path, "--cluster-enabled", "yes") as url:
        with pytest.raises(RedisModeError, match="Redis Cluster, which the bus does not") as caught:
            await Member(url, Responder(), start_timeout=60).runner.run()
    assert caught.value.mode == "cluster"


async def test_a_node_of_a_cluster_that_does_not_say_so_is_refused_at_its_first_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    async def unknown(_: Process) -> None: ...

    monkeypatch.setattr(Process, "_check_mode", unknown)
    async with server_with(tmp_path, "--cluster-enabled", "yes") as url:
        with pytest.raises(RedisModeError) as caught:
            await Member(url, Responder(), start_timeout=60).runner.run()
    assert "Hash slot not served" in str(caught.value.__cause__)


async def test_a_sentinel_is_refused_at_the_start(tmp_path: Path):
    async with sentinel(tmp_path) as url:
        with pytest.raises(RedisModeError, match="a Redis Sentinel, which the bus does") as caught:
            await Member(url, Responder(), start_timeout=60).runner.run()
    assert caught.value.mode == "sentinel"


@pytest.mark.parametrize(
    ("error", "meaning", "is_clusters"),
    [
        (MovedError("7365 127.0.0.1:33923"), "a node of a Redis Cluster", True),
        (AskError("7365 127.0.0.1:33923"), "a node of a Redis Cluster", True),
        (ClusterDownError("Hash slot not served"), "a node of a Redis Cluster", True),
        (OutOfMemoryError("command not allowed when used memory > 'maxmemory'."), "is full", False),
        (
            ResponseError("Error running script: @user_script: 12: -OOM command not allowed"),
            "is full",
            False,
        ),
        (NoPermissionError("this user has no permissions to run 'xread'"), "lacks a right", False),
        (ResponseError("NOAUTH Authentication required."), "wants a password", False),
        (ResponseError("MISCONF Redis is configured to save"), "cannot save", False),
        (ResponseError("NOREPLICAS Not enough good replicas"), "fewer replicas", False),
        (ResponseError("BUSY Redis is busy running a script"), "too long", False),
        (ResponseError("WRONGTYPE Operation against a key"), "another program", False),
    ],
)
def test_a_known_error_of_the_server_is_explained_and_quoted(
    error: ResponseError, meaning: str, is_clusters: bool
):
    assert meaning in explain(error)
    assert str(error) in explain(error)
    assert is_of_cluster(error) is is_clusters


def test_an_unknown_error_of_the_server_is_quoted():
    assert explain(ResponseError("never heard of")) == "never heard of"
    assert not is_of_cluster(None)


async def test_a_password_that_is_missing_is_an_error_at_the_start_that_says_so():
    async with EmbeddedRedis(port=free_port()) as server:
        address = server.url.rpartition("@")[2]
        with pytest.raises(BusUnavailableError, match="wants a password"):
            await Member(f"redis://{address}", start_timeout=0.3).runner.run()


async def test_a_server_whose_memory_is_full_is_logged_once_a_minute(
    redis_server: EmbeddedRedis, redis: Redis
):
    errors: list[str] = []
    sink = logger.add(errors.append, level="ERROR")
    async with (
        Member(redis_server.url, requester := Requester(), lease=1.0) as member,
        Member(redis_server.url, Responder()),
    ):
        await member.wait_until_known("responder")
        process = member.bus._process
        assert process is not None
        refused = 0
        log = process._refusal_log.log

        def count(*about: object) -> None:
            nonlocal refused
            refused += 1
            log(*about)

        process._refusal_log.log = count
        await redis.config_set("maxmemory", 1)
        asking = asyncio.create_task(requester.ask("responder", "echo", timeout=60))
        await until(lambda: refused > 5)
        await redis.config_set("maxmemory", 0)
        assert (await asking)["from"] == "responder"
        assert member.bus.stats.expulsions == 0
    logger.remove(sink)
    [line] = [each for each in errors if str(member.bus) in each]
    assert "memory is full" in line
