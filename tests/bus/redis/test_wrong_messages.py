"""After any message from the server, a process reads on, and its workers get the next message."""

import json
from typing import Any

import pytest
from redis.asyncio import Redis
from support.redis.processes import LONG_LEASE, Process, redis, redis_server
from support.redis.router_without_server import RouterHarness
from support.workers import RAISED, Requester, Responder

from pipecat_jobs.bus._distributed.engine import BusStats, Entry, Lane
from pipecat_jobs.bus._distributed.outbox import Outbox
from pipecat_jobs.bus.redis import EmbeddedRedis, RedisStreamsBus
from pipecat_jobs.bus.redis.process import Process as OnChannel
from pipecat_jobs.bus.redis.script import Channel, Limits

__all__ = ["redis", "redis_server"]


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
async def test_a_process_reads_the_next_entry_after_one_that_raises(
    monkeypatch: pytest.MonkeyPatch, job_log: Any, error: BaseException
):
    bus = RedisStreamsBus("redis://nowhere")
    read: list[Entry] = []

    def raise_at_first(entry: Entry) -> None:
        read.append(entry)
        if len(read) == 1:
            raise error

    monkeypatch.setattr(bus, "read", raise_at_first)
    channel, outbox = Channel("c", Limits(LONG_LEASE, LONG_LEASE, 1)), Outbox(1)
    process = OnChannel(
        Redis(), channel, outbox, bus, lease=LONG_LEASE, timeout=LONG_LEASE, stats=BusStats()
    )
    for number in range(2):
        process._take(Entry(Lane.DATA, "m", "", number, b"x" * 100_000))
    assert len(read) == 2
    [logged] = [each for each in job_log if each.exception is error]
    assert logged.level == ("CRITICAL" if isinstance(error, SystemExit) else "ERROR")
    assert len(logged.message) < 400


async def test_only_the_first_200_characters_of_garbage_are_logged(job_log: Any):
    harness = RouterHarness()
    harness.deliver("m", b"2 zz 1 -\n" + b'{"$":"%s"}' % (b"y" * 100_000))
    [logged] = [each for each in job_log if "skipping" in each.message]
    assert "unknown type 'yyy" in logged.message
    assert len(logged.message) < 400


WRONG = [
    {"$": "BusJobUpdateMessage", "v": {"source": "a", "job_id": 5, "update": None, "name": {}}},
    {
        "$": "BusJobUpdateMessage",
        "v": {
            "source": "a",
            "job_id": "1",
            "update": None,
            "name": {"$": "LLMMessagesUpdateFrame", "v": {"messages": [], "name": {}}},
        },
    },
    {
        "$": "BusFrameMessage",
        "v": {
            "source": "a",
            "frame": {"$": "TextFrame", "v": {"text": {"x": 1}}},
            "direction": {"$": "FrameDirection", "v": "UPSTREAM"},
        },
    },
    {"$": "BusWorkerRegistryMessage", "v": {"source": "a", "runner": [], "workers": [1]}},
    {"$": "BusEndMessage", "v": {"source": {}, "reason": 1}},
]


#: Ints with equal hashes, in as many bytes as a message may have.
FLOOD = {"$": "set", "v": [number * (2**61 - 1) for number in range(40_000)]}


async def send_to_all(redis: Redis, *messages: dict[str, Any]) -> None:
    """Write messages into every process's inboxes, as any client with write access can."""
    for key in [key async for key in redis.scan_iter("*:in:*")]:
        for number, message in enumerate(messages):
            body = f"2 zz{number} 1 -\n{json.dumps(message, separators=(',', ':'))}"
            await redis.xadd(key, {"k": "m", "r": "1:1", "a": "0", "b": body})


@pytest.mark.parametrize("target", ["responder", "requester", None])
async def test_workers_and_runners_still_receive_messages_after_ones_with_wrong_fields(
    redis_server: EmbeddedRedis, redis: Redis, target: str | None
):
    theirs, ours = (
        RedisStreamsBus(redis_server.url, channel="c", lease=LONG_LEASE) for _ in range(2)
    )
    requester = Requester()
    async with Process(theirs, Responder()), Process(ours, requester) as process:
        await process.wait_until_known("responder")
        await send_to_all(
            redis, *({**wrong, "v": {**wrong["v"], "target": target}} for wrong in WRONG)
        )
        response = await requester.ask("responder", "echo", timeout=60)
        assert response["from"] == "responder"
    assert theirs.stats.garbage > 0
    assert ours.stats.garbage > 0


async def test_a_set_that_would_take_minutes_to_build_is_skipped_at_once(
    redis_server: EmbeddedRedis, redis: Redis
):
    theirs, ours = (
        RedisStreamsBus(redis_server.url, channel="c", lease=LONG_LEASE) for _ in range(2)
    )
    requester = Requester()
    async with Process(theirs, Responder()), Process(ours, requester) as process:
        await process.wait_until_known("responder")
        request = {"source": "a", "target": "responder", "job_id": "1", "payload": {"x": FLOOD}}
        await send_to_all(redis, {"$": "BusJobRequestMessage", "v": request})
        response = await requester.ask("responder", "echo", timeout=60)
        assert response["from"] == "responder"
    assert theirs.stats.garbage > 0
