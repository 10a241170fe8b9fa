"""``RedisStreamsBus`` without failures: routing, pools, refused messages, and the end."""

import asyncio
import math
from dataclasses import dataclass
from typing import Any

import pytest
from loguru import logger
from pipecat.bus.messages import (
    BusActivateWorkerMessage,
    BusFrameMessage,
    BusJobCancelMessage,
    BusJobRequestMessage,
    BusJobResponseMessage,
    BusMessage,
    BusWorkerRegistryMessage,
)
from pipecat.frames.frames import TextFrame
from pipecat.pipeline.job_context import JobParams, JobStatus
from pipecat.processors.frame_processor import FrameDirection
from pipecat.workers.base_worker import BaseWorker as PipecatBaseWorker
from redis import Redis as SyncRedis
from redis.asyncio import Redis
from support.listeners import Listener, data
from support.redis.processes import (
    Member,
    assert_nothing_remains,
    process_of,
    redis,
    redis_server,
    until,
    until_async,
)
from support.tcp_proxy import TcpProxy
from support.workers import Requester, Responder, cancelled

from pipecat_jobs import (
    BaseWorker,
    JobError,
    MessageTooLargeError,
    MessageTypeError,
    WorkerLostError,
    job,
    job_attempt,
)
from pipecat_jobs.bus.envelope import Envelopes, OpenedMessage
from pipecat_jobs.bus.redis import EmbeddedRedis, RedisStreamsBus
from pipecat_jobs.bus.redis.inbox import Inbox

__all__ = ["redis", "redis_server"]


class Receiver(Listener):
    """Keeps the messages of the tests, and not those that runners exchange."""

    def accepts_bus_message(self, message: BusMessage) -> bool:
        return super().accepts_bus_message(message) and not isinstance(
            message, BusWorkerRegistryMessage
        )


async def listener(member: Member, name: str) -> Listener:
    listener = Receiver(name)
    await member.bus.subscribe(listener)
    # The offers were sent earlier, so they have reached the server once this returns.
    await member.wait_until_sent()
    return listener


# -- jobs between processes ----------------------------------------------------------------------


async def test_jobs_streams_updates_errors_and_groups_cross_processes(redis_server: EmbeddedRedis):
    async with (
        Member(redis_server.url, requester := Requester()) as member,
        Member(redis_server.url, Responder("a"), Responder("b")),
    ):
        await member.wait_until_known("a", "b")
        assert (await requester.ask("a", "echo", payload={"x": (1, b"2")}, timeout=60))[
            "payload"
        ] == {"x": (1, b"2")}
        async with requester.job_group("a", "b", name="echo", timeout=60) as group:
            pass
        assert {name: response["from"] for name, response in group.responses.items()} == {
            "a": "a",
            "b": "b",
        }
        async with requester.job("a", name="count", payload={"to": 50}, timeout=60) as j:
            numbers = [event.data["number"] async for event in j if event.data]
        assert numbers == list(range(50))
        with pytest.raises(JobError, match="no such topic") as caught:
            await requester.ask("b", "raise", timeout=60)
        assert "ValueError" in (caught.value.outcomes["b"].error.traceback or "")


async def test_a_name_that_is_not_unicode_text_does_not_stop_other_messages(
    redis_server: EmbeddedRedis,
):
    broken = "half of an emoji: \ud83d"
    async with (
        Member(redis_server.url, requester := Requester()) as member,
        Member(redis_server.url, Responder(broken)),
    ):
        await member.wait_until_known(broken)
        assert (await requester.ask(broken, "echo", timeout=60))["from"] == broken


async def test_a_cancel_stops_the_handler_in_the_other_process(redis_server: EmbeddedRedis):
    async with (
        Member(redis_server.url, requester := Requester()) as member,
        Member(redis_server.url, responder := Responder()),
    ):
        await member.wait_until_known("responder")
        asking = asyncio.create_task(requester.ask("responder", "wait", timeout=20))
        await responder.started.get()
        await cancelled(asking)
        await until(lambda: responder.cancelled)


async def test_an_urgent_message_overtakes_data_that_is_queued(redis_server: EmbeddedRedis):
    async with (
        TcpProxy(redis_server.url) as proxy,
        Member(redis_server.url) as sender,
        Member(proxy.url) as receiver,
    ):
        target = await listener(receiver, "a")
        # All messages wait in the inbox before the first is read.
        proxy.block()
        for number in range(100):
            await sender.bus.send(data("a", number=number))
        await sender.bus.send(BusJobCancelMessage(source="sender", target="a", job_id="1"))
        await sender.wait_until_sent()
        proxy.reset()
        proxy.unblock()
        first, *rest = await target.receive(101)
        assert isinstance(first, BusJobCancelMessage)
        assert [message.text for message in rest] == [str(number) for number in range(100)]


async def test_plain_pipecat_workers_ask_and_respond_across_processes(redis_server: EmbeddedRedis):
    class Plain(PipecatBaseWorker):
        async def on_job_request(self, message: BusJobRequestMessage) -> None:
            await super().on_job_request(message)
            await self.send_job_response(message.job_id, {"plain": message.payload})

    async with (
        Member(redis_server.url, plain := Plain("plain"), requester := Requester()) as member,
        Member(redis_server.url, Plain("other"), Responder()),
    ):
        await member.wait_until_known("other", "responder")
        assert await requester.ask("other", payload={"x": 1}, timeout=60) == {"plain": {"x": 1}}
        async with plain.job("responder", params=JobParams(name="echo", timeout=60)) as j:
            pass
        assert j.response["from"] == "responder"


# -- routing -------------------------------------------------------------------------------------


async def test_a_process_gets_targeted_messages_and_broadcasts(redis_server: EmbeddedRedis):
    async with (
        Member(redis_server.url) as sender,
        Member(redis_server.url) as one,
        Member(redis_server.url) as two,
    ):
        a, b, own = await listener(one, "a"), await listener(two, "b"), await listener(sender, "c")
        before = two.bus.stats.received
        for number in range(20):
            await sender.bus.send(data("a", number=number))
        assert [message.text for message in await a.receive(20)] == [str(n) for n in range(20)]
        assert two.bus.stats.received == before
        await sender.bus.send(to_all := BusActivateWorkerMessage(source="x", args={"y": 1}))
        for each in (a, b, own):
            [message] = await each.receive(1)
            assert message.args == to_all.args
        assert own.received.empty()


async def test_a_message_for_a_worker_of_the_same_process_stays_in_the_process(
    redis_server: EmbeddedRedis,
):
    async with (
        Member(redis_server.url, requester := Requester(), responder := Responder()),
        Member(redis_server.url, elsewhere := Responder()),
    ):
        for _ in range(10):
            assert await requester.ask("responder", "echo", timeout=60)
        assert (len(responder.ran), len(elsewhere.ran)) == (10, 0)


async def test_frames_cross_processes_as_on_pipecats_buses(redis_server: EmbeddedRedis):
    async with Member(redis_server.url) as one, Member(redis_server.url) as two:
        target = await listener(two, "bridge")
        frame = BusFrameMessage(
            source="a", frame=TextFrame("hello"), direction=FrameDirection.DOWNSTREAM
        )
        await one.bus.send(frame)
        [message] = await target.receive(1)
        assert isinstance(message, BusFrameMessage)
        assert message.frame.text == "hello"


async def test_a_frame_that_cannot_be_carried_is_dropped_and_logged_once(
    redis_server: EmbeddedRedis,
):
    class Odd(TextFrame):
        pass

    logged: list[str] = []
    sink = logger.add(lambda text: logged.append(str(text)), level="WARNING")
    async with Member(redis_server.url) as one, Member(redis_server.url) as two:
        mine, target = await listener(one, "mine"), await listener(two, "bridge")
        for frame in (Odd("x"), Odd("y"), TextFrame("z")):
            await one.bus.send(
                BusFrameMessage(source="a", frame=frame, direction=FrameDirection.DOWNSTREAM)
            )
        [message] = await target.receive(1)
        assert message.frame.text == "z"
        assert len(await mine.receive(3)) == 3
    logger.remove(sink)
    assert len([line for line in logged if "Odd" in line]) == 1


# -- refused messages and options ----------------------------------------------------------------


async def test_a_payload_too_large_or_of_unknown_type_is_an_error_at_the_sender(
    redis_server: EmbeddedRedis,
):
    async with (
        Member(redis_server.url, requester := Requester(), max_message_bytes=2000) as member,
        Member(redis_server.url, worker := Responder()),
    ):
        await member.wait_until_known("responder")
        for payload, error in (
            ({"text": "x" * 2000}, MessageTooLargeError),
            ({"thing": object()}, MessageTypeError),
        ):
            with pytest.raises(JobError, match="responder") as caught:
                await requester.ask("responder", "echo", payload=payload, timeout=60)
            assert isinstance(caught.value.__cause__, error)
        assert not worker.ran


@dataclass(frozen=True)
class Shelf:
    number: int


class Librarian(BaseWorker):
    @job(name="find")
    async def find(self, message: BusJobRequestMessage) -> dict:
        return {"beside": Shelf(message.payload["shelf"].number + 1)}


async def test_the_types_that_a_bus_is_given_are_carried_and_no_other_bus_takes_them(
    redis_server: EmbeddedRedis,
):
    async with (
        Member(redis_server.url, requester := Requester(), types=[Shelf]) as member,
        Member(redis_server.url, Librarian("librarian"), types=[Shelf]),
    ):
        await member.wait_until_known("librarian")
        ask = requester.job("librarian", name="find", payload={"shelf": Shelf(7)}, timeout=60)
        assert await ask == {"beside": Shelf(8)}
    async with (
        Member(redis_server.url, requester := Requester()) as member,
        Member(redis_server.url, Librarian("librarian")),
    ):
        await member.wait_until_known("librarian")
        with pytest.raises(JobError) as caught:
            await requester.job("librarian", name="find", payload={"shelf": Shelf(7)}, timeout=60)
        assert isinstance(caught.value.__cause__, MessageTypeError)


async def test_a_response_that_cannot_be_carried_ends_the_job_as_an_error(
    redis_server: EmbeddedRedis,
):
    class Odd(BaseWorker):
        @job(name="odd")
        async def odd(self, message: BusJobRequestMessage) -> dict:
            return {"thing": object()}

    async with (
        Member(redis_server.url, requester := Requester()) as member,
        Member(redis_server.url, Odd("odd")),
    ):
        await member.wait_until_known("odd")
        with pytest.raises(JobError, match=r"response\.thing is a object"):
            await requester.ask("odd", "odd", timeout=60)


async def inbox_of(redis: Redis, name: str) -> str:
    return f"pipecat-jobs:{{pipecat}}:in:{await process_of(redis, name)}:d"


async def test_garbage_in_a_stream_is_counted_logged_once_and_skipped(
    redis_server: EmbeddedRedis, redis: Redis
):
    logged: list[str] = []
    sink = logger.add(lambda text: logged.append(str(text)), level="WARNING")
    async with Member(redis_server.url) as one, Member(redis_server.url) as two:
        target = await listener(two, "a")
        stream = await inbox_of(redis, "a")
        for fields in (
            {"b": "no kind"},
            {"k": "m", "r": "", "a": 0, "b": "no envelope"},
            {"k": "m", "r": "", "a": "x", "b": ""},
            {"k": "j", "r": "nobody:1", "a": 1, "b": "no request"},
            {"k": "l", "r": "nobody:1", "a": 1, "b": "once"},
            {"k": "?", "r": "", "a": 0, "b": ""},
        ):
            await redis.xadd(stream, fields)
        await one.bus.send(data("a"))
        await target.receive(1)
        assert two.bus.stats.garbage == 5
    logger.remove(sink)
    assert len([line for line in logged if "not this channel's" in line]) == 1


async def test_a_process_without_the_secret_can_send_nothing_and_replay_nothing(
    redis_server: EmbeddedRedis, redis: Redis, monkeypatch: pytest.MonkeyPatch
):
    recorded: list[bytes] = []
    opens = Envelopes.open

    def record(envelopes: Envelopes, purpose: str, sealed: bytes, **options: Any) -> OpenedMessage:
        recorded.append(sealed)
        return opens(envelopes, purpose, sealed, **options)

    async with (
        Member(redis_server.url, requester := Requester(), secret="s3cret") as one,
        Member(redis_server.url, worker := Responder(), secret="s3cret") as two,
    ):
        await one.wait_until_known("responder")
        target = await listener(two, "a")
        async with Member(redis_server.url) as other:
            await other.bus.send(data("a", number=2))
            await until(lambda: two.bus.stats.garbage)
        assert target.received.empty()

        monkeypatch.setattr(Envelopes, "open", record)
        await one.bus.send(data("a", number=3))
        [message] = await target.receive(1)
        assert message.text == "3"
        garbage = two.bus.stats.garbage
        [sealed] = [sealed for sealed in recorded if b'"text":"3"' in sealed]
        again = {"k": "m", "r": "", "a": 0, "b": sealed}
        await redis.xadd(await inbox_of(redis, "a"), again)
        await until(lambda: two.bus.stats.garbage > garbage)
        assert target.received.empty()

        assert await requester.ask("responder", "echo", timeout=60)
        assert len(worker.ran) == 1


async def test_a_response_from_a_worker_that_was_not_asked_is_ignored(
    redis_server: EmbeddedRedis,
):
    async with (
        Member(redis_server.url, requester := Requester()) as one,
        Member(redis_server.url, responder := Responder()),
        Member(redis_server.url, Responder("unrelated")) as three,
    ):
        await one.wait_until_known("responder", "unrelated")
        asking = asyncio.create_task(requester.ask("responder", "wait", timeout=20))
        job_id = await responder.started.get()
        for source in ("unrelated", "responder"):
            await three.bus.send(
                BusJobResponseMessage(
                    source=source,
                    target="requester",
                    job_id=job_id,
                    status=JobStatus.COMPLETED,
                    response={"forged": True},
                )
            )
        assert three.bus.stats.late_responses == 2
        responder.release.set()
        assert await asking == {"from": "responder"}


async def test_a_request_that_a_process_cannot_read_is_lost_and_not_left_waiting(
    redis_server: EmbeddedRedis,
):
    async with (
        Member(redis_server.url, requester := Requester()) as member,
        Member(redis_server.url, Responder(), max_message_bytes=1000),
    ):
        await member.wait_until_known("responder")
        with pytest.raises(WorkerLostError, match="could not read it"):
            await requester.ask("responder", "echo", payload={"text": "x" * 2000}, timeout=20)


async def test_a_request_published_twice_runs_once(redis_server: EmbeddedRedis):
    async with (
        Member(redis_server.url, Requester()) as member,
        Member(redis_server.url, responder := Responder()),
    ):
        await member.wait_until_known("responder")
        request = BusJobRequestMessage(
            source="requester", target="responder", job_id="1", job_name="echo"
        )
        for _ in range(2):
            await member.bus.send(request)
        await until(lambda: responder.ran)
        await member.wait_until_sent()
        assert responder.ran == ["1"]


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("url_or_client", 7, TypeError),
        ("url_or_client", SyncRedis(), TypeError),
        ("channel", "", ValueError),
        ("channel", 42, TypeError),
        ("lease", 0, ValueError),
        ("lease", math.nan, ValueError),
        ("lease", math.inf, ValueError),
        ("takeover", -1, ValueError),
        ("takeover", "3", TypeError),
        ("start_timeout", 0, ValueError),
        ("max_attempts", 0, ValueError),
        ("room", 1.5, TypeError),
        ("room", True, TypeError),
        ("max_message_bytes", 0, ValueError),
        ("outbox_limit", 0, ValueError),
    ],
)
def test_options_that_cannot_be_used_are_refused(option: str, value: Any, error: type[Exception]):
    with pytest.raises(error, match=option.removesuffix("url_or_client") or "redis.asyncio.Redis"):
        RedisStreamsBus(**{option: value})


async def test_a_bus_that_is_not_started_or_has_stopped_has_nothing_to_drain(
    redis_server: EmbeddedRedis,
):
    bus = RedisStreamsBus(redis_server.url)
    async with asyncio.timeout(100):
        await bus.drain()
        async with Member(redis_server.url) as member:
            pass
        await member.bus.drain()


def test_the_first_attempt_is_one_on_every_bus():
    assert job_attempt(BusJobRequestMessage(source="a", target="b", job_id="1")) == 1


# -- the embedded server, clients, several channels ----------------------------------------------


async def test_without_a_url_the_bus_brings_its_own_server():
    async with (
        Member(None, requester := Requester()) as member,
        Member(member.bus.url, Responder()),
    ):
        await member.wait_until_known("responder")
        assert await requester.ask("responder", "echo", timeout=60)
    with pytest.raises(RuntimeError, match="before it is started"):
        member.bus.url  # noqa: B018


async def test_a_client_of_the_user_gives_the_server_address_with_any_decoding_option(
    redis_server: EmbeddedRedis,
):
    async with Redis.from_url(redis_server.url, decode_responses=True, protocol=3) as client:
        async with (
            Member(client, requester := Requester()) as member,
            Member(redis_server.url, Responder()),
        ):
            await member.wait_until_known("responder")
            assert await requester.ask("responder", "echo", timeout=60)
            with pytest.raises(RuntimeError, match="given a client"):
                member.bus.url  # noqa: B018
        assert await client.ping()


async def test_channels_are_isolated_from_each_other(redis_server: EmbeddedRedis, redis: Redis):
    async with (
        Member(redis_server.url, requester := Requester(), channel="one") as member,
        Member(redis_server.url, first := Responder(), channel="one"),
        Member(redis_server.url, second := Responder(), channel="two"),
    ):
        await member.wait_until_known("responder")
        for _ in range(4):
            await requester.ask("responder", "echo", timeout=60)
        assert (len(first.ran), len(second.ran)) == (4, 0)
    await assert_nothing_remains(redis)


async def test_a_bus_that_has_stopped_leaves_no_task_and_no_connection(
    redis_server: EmbeddedRedis, redis: Redis
):
    async with Member(redis_server.url, Responder()):
        assert len(await redis.client_list()) > 1
    assert [task for task in asyncio.all_tasks() if "redis" in task.get_name()] == []

    async def is_alone() -> bool:
        return len(await redis.client_list()) == 1

    await until_async(is_alone)


async def test_a_reader_that_raises_an_unexpected_error_goes_on(
    redis_server: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
):
    reads, failed = Inbox.read, asyncio.Event()

    async def fail_once(inbox: Inbox, take: Any) -> None:
        await reads(inbox, take)
        if not failed.is_set():
            failed.set()
            raise ValueError("unforeseen")

    monkeypatch.setattr(Inbox, "read", fail_once)
    async with (
        Member(redis_server.url, requester := Requester()) as member,
        Member(redis_server.url, Responder()),
    ):
        await member.wait_until_known("responder")
        assert await requester.ask("responder", "echo", timeout=10)
        assert failed.is_set()
