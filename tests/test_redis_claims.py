"""With a secret, a job that must not run twice does not, whatever strangers write to the server."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pipecat.bus.messages import BusJobRequestMessage
from pipecat.pipeline.job_context import JobStatus
from redis.asyncio import Redis
from redis_desk import Desk, answer, request
from redis_script import held_jobs
from redis_support import Member, redis, redis_server, until
from support import Answerer, Asker

from pipecat_jobs import WorkerLostError, job
from pipecat_jobs._protocol.headers import runs_once, set_run_once
from pipecat_jobs.bus._distributed.router import Post
from pipecat_jobs.bus.envelope import Envelopes
from pipecat_jobs.bus.redis import EmbeddedRedis
from pipecat_jobs.bus.redis.outbox import Lane

__all__ = ["redis", "redis_server"]

SECRET = "s3cret"
PREFIX = "pipecat-jobs:{pipecat}"
#: Writes into the server's books that a job is another process's.
GIVE_AWAY = """
local job = cmsgpack.unpack(redis.call('HGET', KEYS[1], ARGV[1]))
job.o = ARGV[2]
redis.call('HSET', KEYS[1], ARGV[1], cmsgpack.pack(job))
"""


class Cashier(Answerer):
    @job(name="pay", run_once=True)
    async def pay(self, message: BusJobRequestMessage) -> dict:
        return await self.wait_for_release(message)


class Stranger:
    """Who can write to the server, and knows what was written there."""

    def __init__(self, redis: Redis, monkeypatch: pytest.MonkeyPatch):
        self._redis = redis
        self._requests: dict[str, dict[str, Any]] = {}
        reads = Post.read

        def read(post: Post, entry: Any) -> None:
            if entry.kind == "j":
                self._requests[entry.ref] = {"k": "j", "r": entry.ref, "a": 1, "b": entry.body}
            reads(post, entry)

        monkeypatch.setattr(Post, "read", read)

    @property
    def refs(self) -> list[str]:
        return list(self._requests)

    async def repeat(self, ref: str, process: str) -> None:
        """Play a request to a process, as the request of whatever job."""
        await self._redis.xadd(f"{PREFIX}:in:{process}:d", self._requests[ref])

    async def give_away(self, ref: str, process: str) -> None:
        asker, _, number = ref.rpartition(":")
        key = f"{PREFIX}:proc:{asker}"
        await self._redis.execute_command("EVAL", GIVE_AWAY, 1, key, f"job:{number}", process)


@pytest.fixture
def stranger(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> Stranger:
    return Stranger(redis, monkeypatch)


@contextlib.asynccontextmanager
async def at_work(
    url: str, name: str = "pay", **options: Any
) -> AsyncIterator[tuple[asyncio.Task[Any], Member]]:
    """A job that one of two processes is at, and the other process. It has run once in the end."""
    workers = [Cashier(), Cashier()]
    async with (
        Member(url, asker := Asker(), secret=SECRET) as one,
        Member(url, workers[0], secret=SECRET) as two,
        Member(url, workers[1], secret=SECRET) as three,
    ):
        await one.knows("answerer")
        asking = asyncio.create_task(asker.ask("answerer", name, timeout=20, **options))
        await until(lambda: workers[0].ran or workers[1].ran)
        yield asking, three if workers[0].ran else two
        for worker in workers:
            worker.release.set()
        await asyncio.wait([asking])
        assert len(workers[0].ran + workers[1].ran) == 1


@pytest.mark.parametrize(("name", "options"), [("pay", {}), ("wait", {"run_once": True})])
async def test_a_stranger_cannot_have_a_job_run_twice_that_must_not(
    redis_server: EmbeddedRedis, stranger: Stranger, name: str, options: dict[str, Any]
):
    async with at_work(redis_server.url, name, **options) as (asking, other):
        [ref] = stranger.refs
        await stranger.repeat(ref, other.bus._process.id)
        await until(lambda: other.bus.stats.late_answers)
    assert await asking == {"from": "answerer"}


async def test_a_stranger_who_writes_that_a_job_is_anothers_loses_it_and_does_not_double_it(
    redis_server: EmbeddedRedis, stranger: Stranger
):
    async with at_work(redis_server.url) as (asking, other):
        [ref] = stranger.refs
        await stranger.give_away(ref, other.bus._process.id)
        await stranger.repeat(ref, other.bus._process.id)
        with pytest.raises(WorkerLostError, match="must not run twice"):
            await asking


async def test_a_job_that_must_not_run_twice_runs_and_leaves_nothing(
    redis_server: EmbeddedRedis, redis: Redis
):
    url = redis_server.url
    async with (
        Member(url, asker := Asker(), secret=SECRET) as one,
        Member(url, worker := Cashier(), secret=SECRET),
    ):
        await one.knows("answerer")
        worker.release.set()
        jobs = [asker.ask("answerer", "pay", timeout=20) for _ in range(100)]
        assert await asyncio.gather(*jobs) == [{"from": "answerer"}] * 100
        assert len(set(worker.ran)) == len(worker.ran) == 100
        await one.sent()
        assert await held_jobs(redis) == []
    assert await redis.keys() == []


# -- the process that has the request --------------------------------------------------------------


async def claimed(once: bool = True, **options: Any) -> tuple[Desk, bytes]:
    """A process that has asked for the word, and what it has asked."""
    desk = Desk(**{"secret": SECRET, **options})
    desk.get_request(once=once)
    [(*told, sealed)] = await desk.tried()
    assert told == ["tell", "other:1", 1, "u", "q", "0"]
    assert desk.ours.delivered == []
    await desk.sent()
    return desk, sealed


def grant(desk: Desk, word: str = "me other:1", number: int = 2, sender: str = "other") -> None:
    sealed = desk.others.seal("grant", sender, number, word.encode())
    desk.get("y", sealed, "other:1", lane=Lane.URGENT)


async def test_a_job_begins_with_the_word_of_whoever_asked_and_once():
    desk, _ = await claimed()
    grant(desk)
    [message] = desk.ours.delivered
    assert isinstance(message, BusJobRequestMessage)
    assert runs_once(message)
    grant(desk, number=3)
    grant(desk, "another other:1", number=4)
    assert desk.ours.delivered == [message]
    desk.post.publish(answer())
    assert await desk.sent() == ["tell"]


async def test_what_the_worker_says_of_its_jobs_is_enough():
    desk = Desk(secret=SECRET)
    desk.ours.once = ["pay"]
    desk.get_request(job_name="pay")
    assert desk.ours.delivered == []
    desk.get_request("other:2", job_id="2", job_name="look")
    assert [message.job_id for message in desk.ours.delivered] == ["2"]


async def test_without_a_secret_nobody_is_waited_for():
    desk = Desk()
    desk.get_request(once=True)
    assert len(desk.ours.delivered) == 1
    assert await desk.calls() == []


async def test_a_job_that_another_process_has_been_given_is_given_back():
    desk, _ = await claimed()
    grant(desk, "another other:1")
    assert desk.ours.delivered == []
    assert await desk.tried() == [("give_back", "other:1", 1, "1")]
    assert desk.post.ledger.all_held() == []


@pytest.mark.parametrize(
    ("word", "sender", "purpose", "secret"),
    [
        ("me other:1", "me", "grant", SECRET),
        ("me other:1", "other", "claim", SECRET),
        ("me other:1", "other", "grant", "another"),
        ("me other:2", "other", "grant", SECRET),
        ("", "other", "grant", SECRET),
    ],
)
async def test_no_other_word_has_it_begin(word: str, sender: str, purpose: str, secret: str):
    desk, _ = await claimed()
    sealed = Desk(secret=secret).others.seal(purpose, sender, 2, word.encode())
    desk.get("y", sealed, "other:1", lane=Lane.URGENT)
    assert desk.ours.delivered == []
    assert len(desk.post.ledger.all_held()) == 1


async def test_a_job_that_the_server_knows_to_be_anothers_is_let_go():
    desk = Desk(secret=SECRET)
    desk.get_request(once=True)
    await desk.sent("stale")
    assert desk.post.ledger.all_held() == []
    assert desk.stats.late_answers == 1
    grant(desk)
    assert desk.ours.delivered == []


async def test_a_job_that_a_stranger_sent_first_is_taken_when_it_comes():
    desk = Desk(secret=SECRET)
    desk.get_request(once=True)
    await desk.sent("stale")
    desk.get_request(once=True)
    assert await desk.sent() == ["tell"]
    grant(desk)
    assert len(desk.ours.delivered) == 1


async def test_a_word_that_got_lost_is_asked_for_again():
    desk, _ = await claimed()
    desk.post.audit()
    assert sorted(call[0] for call in await desk.tried()) == ["audit", "tell"]
    await desk.sent()
    grant(desk)
    desk.post.audit()
    assert [call[0] for call in await desk.tried()] == ["audit"]


@pytest.mark.parametrize("meanwhile", ["it began", "its asker died"])
async def test_a_late_reply_changes_nothing(meanwhile: str):
    desk = Desk(secret=SECRET)
    desk.get_request(once=True)
    await desk.tried()
    [call] = await desk.calls()
    desk.outbox.sent([call])
    if meanwhile == "it began":
        grant(desk)
    else:
        desk.get("c", ref="other:1", attempt=1)
    held = desk.post.ledger.all_held()
    call.replied("stale")
    assert desk.post.ledger.all_held() == held
    assert desk.stats.late_answers == 0


async def test_a_job_whose_asker_dies_before_it_gave_its_word_is_forgotten():
    desk, _ = await claimed()
    desk.get("c", ref="other:1", attempt=1)
    assert desk.ours.delivered == []
    assert desk.post.ledger.all_held() == []


async def test_a_job_that_is_cancelled_before_the_word_never_begins():
    desk, _ = await claimed()
    desk.get_cancel()
    assert await desk.sent() == ["tell"]
    grant(desk, number=3)
    assert desk.ours.delivered == []
    assert desk.post.ledger.all_held() == []


async def test_a_request_is_taken_as_the_job_that_it_was_sent_as():
    desk = Desk(secret=SECRET)
    message = request(source="there", target="here")
    desk.get("j", desk.seal_request(message, 1), "other:2", 1)
    assert desk.ours.delivered == []
    assert desk.stats.garbage == 1
    assert await desk.tried() == [("refuse", "other:2", 1)]


@pytest.mark.parametrize("secret", [SECRET, None])
async def test_an_old_request_waits_for_the_word_that_it_is_still_open(secret: str | None):
    desk = Desk(secret=secret)
    desk.others = Envelopes("channel", secret=secret, clock=lambda: time.time() - 3600)
    desk.get_request()
    if secret is None:
        assert len(desk.ours.delivered) == 1
        return
    assert desk.ours.delivered == []
    [(*told, sealed)] = await desk.tried()
    assert told == ["tell", "other:1", 1, "u", "q", "0"]
    desk.others = Envelopes("channel", secret=secret)
    body = json.loads(desk.others.open("claim", sealed).body)
    assert body == ["other:1", "there", "here", "1", False]
    grant(desk)
    [begun] = desk.ours.delivered
    assert isinstance(begun, BusJobRequestMessage)


# -- the process that asked ------------------------------------------------------------------------


def once(job_id: str = "1") -> BusJobRequestMessage:
    message = request(job_id)
    set_run_once(message)
    return message


def claim(
    desk: Desk, body: Any, ref: str = "me:1", *, sender: str = "other", number: int = 1
) -> None:
    sealed = desk.others.seal("claim", sender, number, json.dumps(body).encode())
    desk.get("q", sealed, ref, 1, lane=Lane.URGENT)


async def words(desk: Desk) -> list[bytes]:
    """What processes are told."""
    return await desk.orders("y", "grant")


async def asking() -> Desk:
    desk = Desk(secret=SECRET)
    desk.post.publish(once())
    await desk.sent()
    return desk


OURS = ["me:1", "here", "there", "1", True]


async def test_one_process_gets_the_word_and_the_others_its_name():
    desk = await asking()
    claim(desk, OURS)
    claim(desk, OURS, sender="another")
    claim(desk, OURS, number=2)
    assert await words(desk) == [b"other me:1"] * 3


async def test_whoever_has_it_gets_the_word_for_a_job_that_may_run_again():
    """Its request is old, because it has waited, or was begun long ago by a process that died."""
    desk = Desk(secret=SECRET)
    desk.post.publish(request())
    await desk.sent()
    claim(desk, [*OURS[:-1], False])
    claim(desk, [*OURS[:-1], False], sender="another")
    assert await words(desk) == [b"other me:1", b"another me:1"]


@pytest.mark.parametrize(
    "body",
    [
        ["me:2", "here", "there", "1", True],
        ["me:1", "here", "there", "2", True],
        ["me:1", "here", "elsewhere", "1", False],
    ],
)
async def test_nobody_gets_the_word_for_another_job(body: list[Any]):
    desk = await asking()
    claim(desk, body, body[0])
    assert await words(desk) == []
    assert desk.stats.garbage == 0


@pytest.mark.parametrize("body", [[], 1, "me:1", [1], OURS[:2], [*OURS, "x"], ["me:2", *OURS[1:]]])
async def test_what_is_no_claim_is_skipped(body: Any):
    desk = await asking()
    claim(desk, body)
    assert await words(desk) == []
    assert desk.stats.garbage == 1


async def test_a_recorded_claim_is_skipped():
    desk = await asking()
    claim(desk, OURS)
    claim(desk, OURS)
    assert await words(desk) == [b"other me:1"]
    assert desk.stats.garbage == 1


async def test_nobody_gets_the_word_for_a_job_that_has_ended():
    desk = await asking()
    desk.get("m", desk.seal(answer(source="there", target="here"), number=2), "me:1")
    assert desk.answers() == [(JobStatus.COMPLETED, None)]
    claim(desk, OURS, number=3)
    assert await words(desk) == []


async def test_what_a_process_asks_is_what_an_asker_understands():
    desk, sealed = await claimed()
    body = json.loads(desk.others.open("claim", sealed).body)
    assert body == ["other:1", "there", "here", "1", True]
