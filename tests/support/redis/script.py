"""Processes that call the script of the channel themselves, one step at a time."""

import json
from typing import Any

import pytest
from redis.asyncio import Redis

from pipecat_jobs.bus.redis.script import LOAD, Channel, Limits

#: No lease ends, and no request is lost, unless the test makes it so.
LIMITS: dict[str, Any] = {"lease": 600, "takeover": 600, "max_attempts": 3}
PREFIX = Channel("c", Limits(**LIMITS)).prefix
#: The kinds of keys that have to be on the server while jobs wait.
KINDS = set("members proc hosted names hosts in queues queue waiting turns beat".split())


class Process:
    """A process as the script sees it."""

    def __init__(
        self,
        redis: Redis,
        name: str,
        uid: str | None = None,
        *,
        channel: str = "c",
        **limits: Any,
    ):
        self._redis = redis
        self._channel = Channel(channel, Limits(**{**LIMITS, **limits}))
        self._number = 0
        self.id = name
        self.uid = uid or f"uid-{name}"

    async def call(self, command: str, *arguments: bytes | str | int) -> Any:
        """Call a command that may be repeated."""
        return await self._redis.execute_command(
            *self._channel.call(command, self.id, 0, *arguments)
        )

    async def call_once(self, command: str, *arguments: bytes | str | int) -> str:
        """Call a command that is done once."""
        self._number += 1
        return await self.repeat(command, *arguments)

    async def repeat(self, command: str, *arguments: bytes | str | int) -> str:
        """Make the last call again."""
        return await self._redis.execute_command(
            *self._channel.call(command, self.id, self._number, *arguments)
        )

    async def join(self, *workers: str, **options: Any) -> "Process":
        await self.call("join", self.uid, f"runner-{self.id}")
        for worker in workers:
            await self.host(worker, **options)
        return self

    def spec(
        self,
        once: tuple[str, ...] = (),
        affinity: str | None = None,
        keys: dict[str, list[str]] | None = None,
        **slots: int,
    ) -> str:
        """An offer: slots by job name, one for any other name."""
        once_by_name = dict.fromkeys(once, True)
        spec = {"uid": self.uid, "slots": {"": 1, **slots}, "once": once_by_name}
        more = {"affinity": affinity, "keys": keys}
        return json.dumps(spec | {name: value for name, value in more.items() if value})

    async def host(self, worker: str, **options: Any) -> None:
        await self.call_once("host", worker, self.spec(**options))

    async def ask(
        self,
        worker: str,
        job: str = "job",
        *,
        once: bool = False,
        attempt: int = 1,
        source: str = "requester",
        affinity: str = "",
        request: str = "request",
        beside: str = "",
    ):
        """Request a job, and return its reference at the server."""
        number = beside.rpartition(":")[2]
        about = (worker, job, int(once), attempt, request, source, affinity, number)
        assert await self.call_once("request", *about) == "ok"
        return f"{self.id}:{self._number}"

    async def cancel(self, ref: str) -> str:
        return await self.call_once(
            "notify_worker", ref.rpartition(":")[2], "u", "m", "1", "cancel"
        )

    async def respond(self, ref: str, attempt: int = 1, *, lane: str = "d", last: bool = True):
        return await self.call_once(
            "notify_requester", ref, attempt, lane, "m", int(last), "response"
        )

    async def read(self) -> list[tuple[str, str, str, str]]:
        """Take the entries of the inbox: lane, kind, job, and attempt or body of each."""
        found = []
        for lane in "ud":
            stream = f"{PREFIX}:in:{self.id}:{lane}"
            for _, entry in await self._redis.xrange(stream):
                more = entry["a"] if entry["k"] == "j" else entry["b"]
                found.append((lane, entry["k"], entry["r"], more))
            await self._redis.xtrim(stream, maxlen=0)
        return found

    async def jobs(self) -> list[tuple[str, int]]:
        """Take the entries of the inbox, and return the jobs with their attempts."""
        return [(ref, int(attempt)) for _, kind, ref, attempt in await self.read() if kind == "j"]

    async def moved(self) -> list[tuple[str, bool]]:
        """Take the entries of the inbox, and return the jobs with whether they have moved."""
        stream = f"{PREFIX}:in:{self.id}:d"
        entries = [entry for _, entry in await self._redis.xrange(stream)]
        await self._redis.xtrim(stream, maxlen=0)
        return [(entry["r"], entry.get("m") == "1") for entry in entries if entry["k"] == "j"]

    async def lease_ends(self) -> None:
        await self._redis.zadd(f"{PREFIX}:members", {self.id: 1})


@pytest.fixture
async def script(redis: Redis) -> Redis:
    """The server, with the script loaded."""
    for command in LOAD:
        await redis.execute_command(*command)
    return redis


async def kinds(redis: Redis) -> set[str]:
    """The kinds of keys there are."""
    return {key.split(":")[2] for key in await redis.keys()}


async def held_jobs(redis: Redis) -> list[str]:
    """The jobs that any process has taken, as the server names them."""
    processes = [await redis.hkeys(key) for key in await redis.keys("*:proc:*")]
    return [
        field.removeprefix("held:")
        for fields in processes
        for field in fields
        if field.startswith("held:")
    ]
