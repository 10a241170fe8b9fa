"""The chunks of streams that the client of a bot gets, joined into few messages."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pipecat.bus.messages import BusJobRequestMessage
from pipecat.pipeline.worker import PipelineWorker as PipecatPipelineWorker
from support import peers_ui
from support.client import Client
from support.peers_ui import MakeUI

from pipecat_jobs import (
    BaseWorker,
    ClientJobs,
    InvalidJobError,
    InvalidJobTypeError,
    JobGroupError,
    OpenJob,
    RoutedBus,
    job,
)
from pipecat_jobs.client.data import MOST_BYTES
from pipecat_jobs.testing import JobHarness, run_virtual

make = peers_ui.make

#: Longer than a test, so that only a full message or the end of a job sends what waits.
NEVER = 10_000


class Speaker(BaseWorker):
    """Streams the chunks that the payload has, and waits or fails then if it says so."""

    def __init__(self, name: str):
        super().__init__(name)
        self.streamed = asyncio.Event()

    @job(name="speak")
    async def speak(self, message: BusJobRequestMessage) -> AsyncIterator[Any]:
        payload = message.payload or {}
        for chunk in payload["chunks"]:
            yield chunk
        self.streamed.set()
        if payload.get("waits"):
            await asyncio.Event().wait()
        if payload.get("breaks"):
            raise ValueError("a bug")


def of_streams(client: Client) -> list[dict[str, Any]]:
    """The stream messages that the client got."""
    return [data for data in client.of_type("server-message") if data["event"] == "stream"]


def heard(client: Client, worker: str = "a") -> list[Any]:
    """The chunks of a worker that the client got, in order."""
    return [
        chunk for data in of_streams(client) if data["worker"] == worker for chunk in data["chunks"]
    ]


def closed(client: Client) -> bool:
    return ("closed",) in client.cards()


def words(*texts: str) -> list[dict[str, str]]:
    return [{"text": text} for text in texts]


@pytest.fixture
async def client(job_harness: JobHarness) -> Client:
    return Client()


async def start(
    harness: JobHarness,
    client: Client,
    *,
    stream_interval: float | None = NEVER,
    shown: type[ClientJobs] = ClientJobs,
) -> BaseWorker:
    """Start a requester that is followed, the bot with the transport, and two speakers."""
    host, bot = BaseWorker("host"), client.worker()
    shown(bot, stream_interval=stream_interval).follow(host)
    await harness.start(host, bot, Speaker("a"), Speaker("b"))
    await client.connect()
    return host


async def test_chunks_are_joined_and_the_last_ones_come_before_the_end_of_the_job(
    job_harness: JobHarness, client: Client
):
    host = await start(job_harness, client)

    payload = {"chunks": words("one", "two", "three")}
    async with host.job("a", name="speak", payload=payload) as j:
        pass
    await client.wait_until(lambda: closed(client))

    first, second = of_streams(client)
    at = first.pop("at")
    assert at > 1_600_000_000_000
    assert first == {
        "type": "pipecat-jobs",
        "event": "stream",
        "job_id": j.job_id,
        "worker": "a",
        "first": 0,
        "chunks": words("one"),
    }
    assert (second["first"], second["chunks"]) == (1, words("two", "three"))
    types = [
        message["data"].get("kind", "stream")
        for message in client.got
        if message["type"] in ("ui-job-group", "server-message")
    ]
    assert types == ["group_started", "stream", "stream", "job_completed", "group_completed"]


async def test_the_workers_of_a_group_have_streams_of_their_own(
    job_harness: JobHarness, client: Client
):
    host = await start(job_harness, client)

    payloads = {"a": {"chunks": words("a1", "a2")}, "b": {"chunks": words("b1", "b2")}}
    async with host.job_group("a", "b", name="speak", payloads=payloads):
        pass
    await client.wait_until(lambda: closed(client))

    assert heard(client, "a") == words("a1", "a2")
    assert heard(client, "b") == words("b1", "b2")


async def test_without_an_interval_no_chunk_is_sent(job_harness: JobHarness, client: Client):
    host = await start(job_harness, client, stream_interval=None)

    await host.job("a", name="speak", payload={"chunks": words("one", "two")})
    await client.wait_until(lambda: closed(client))

    assert client.of_type("server-message") == []


@pytest.mark.parametrize("end", ["cancel", "failure"])
async def test_nothing_is_lost_when_a_job_is_cancelled_or_fails(
    job_harness: JobHarness, client: Client, end: str
):
    host = await start(job_harness, client)
    speaker = host.worker_runner.get_worker("a")
    payload = {"chunks": words("one", "two"), "waits": end == "cancel", "breaks": end == "failure"}

    job_id = await host.request_job("a", name="speak", payload=payload)
    await speaker.streamed.wait()
    await job_harness.settle()
    if end == "cancel":
        await host.cancel_job_group(job_id)
    await client.wait_until(lambda: closed(client))

    assert heard(client) == words("one", "two")
    kinds = [message["type"] for message in client.got][-3:]
    assert kinds == ["server-message", "ui-job-group", "ui-job-group"]


async def test_messages_are_bounded_and_lose_nothing(job_harness: JobHarness, client: Client):
    host = await start(job_harness, client)
    chunks = [{"number": number, "text": "é" * 1000} for number in range(100)]

    await host.job("a", name="speak", payload={"chunks": chunks})
    await client.wait_until(lambda: closed(client))

    assert heard(client) == chunks
    assert [data["first"] for data in of_streams(client)] == [
        0,
        1,
        10,
        19,
        28,
        37,
        46,
        55,
        64,
        73,
        82,
        91,
    ]
    sizes = [len(json.dumps(message).encode()) for message in client.got]
    assert max(sizes) < 65_536


async def test_chunks_that_are_not_json_or_too_large_reach_the_client_as_text(
    job_harness: JobHarness, client: Client
):
    host = await start(job_harness, client)
    fits = {"text": "x" * (MOST_BYTES - len('{"text": ""}'))}
    hostile = {"at": b"now", "nan": float("nan"), "half": "\ud800"}
    chunks = [hostile, {"text": "x" * 70_000}, fits, {"last": True}]

    await host.job("a", name="speak", payload={"chunks": chunks})
    await client.wait_until(lambda: closed(client))

    assert heard(client) == [
        {"at": "now", "nan": "nan", "half": "\ufffd"},
        {"left_out": "70,012 bytes"},
        fits,
        {"last": True},
    ]


async def test_a_client_that_connects_again_gets_the_last_chunks_after_the_card(
    job_harness: JobHarness, client: Client
):
    host = await start(job_harness, client)
    speaker = host.worker_runner.get_worker("a")
    chunks = [{"number": number, "text": "x" * 10_000} for number in range(8)]
    payload = {"chunks": chunks, "waits": True}
    job_id = await host.request_job("a", name="speak", payload=payload)
    await speaker.streamed.wait()
    await job_harness.settle()
    client.got.clear()

    await client.connect()
    await client.wait_until(lambda: bool(of_streams(client)))

    assert client.cards() == [("started", "a")]
    (again,) = of_streams(client)
    assert (again["first"], again["chunks"]) == (3, chunks[3:])
    # Those that waited for the end of the interval were among them, and come once.
    await host.cancel_job_group(job_id)
    await client.wait_until(lambda: closed(client))
    assert len(of_streams(client)) == 1


class Picky(ClientJobs):
    def shows_job(self, job: OpenJob) -> bool:
        return job.label is not None

    def select_data(self, job: OpenJob, data: dict[str, Any]) -> object:
        return data.get("text")


async def test_a_bot_chooses_which_streams_and_which_chunks_its_client_sees(
    job_harness: JobHarness, client: Client
):
    host = await start(job_harness, client, shown=Picky)
    chunks = [{"text": "one", "secret": 7}, {"secret": 7}, {"text": "two"}]

    await host.job("a", name="speak", payload={"chunks": words("hidden")})
    await host.job("a", name="speak", payload={"chunks": chunks}, label="Shown")
    await client.wait_until(lambda: closed(client))

    assert heard(client) == ["one", "two"]
    assert [data["first"] for data in of_streams(client)] == [0, 1]


async def test_a_rule_that_raises_is_logged_and_hides_the_chunk(
    job_harness: JobHarness, client: Client, job_log: list[Any]
):
    class Broken(ClientJobs):
        def select_data(self, job: OpenJob, data: dict[str, Any]) -> object:
            return data["text"]

    host = await start(job_harness, client, shown=Broken)

    await host.job("a", name="speak", payload={"chunks": [{"number": 1}, {"text": "two"}]})
    await client.wait_until(lambda: closed(client))

    assert heard(client) == ["two"]
    assert "select_data() raised KeyError; going on" in [record.message for record in job_log]


async def test_the_chunks_of_a_ui_worker_are_sent_although_its_cards_are_pipecats(
    make: MakeUI, job_harness: JobHarness, client: Client
):
    ui, bot = make(), client.worker(worker_class=PipecatPipelineWorker)
    ClientJobs(bot, stream_interval=NEVER).follow(ui)
    await job_harness.start(ui, bot, Speaker("a"))
    await client.connect()

    await ui.job("a", name="speak", payload={"chunks": words("one", "two")})
    await client.wait_until(lambda: len(heard(client)) == 2)

    assert heard(client) == words("one", "two")


async def test_a_job_that_began_before_it_was_followed_is_not_shown(
    job_harness: JobHarness, client: Client
):
    host, bot = BaseWorker("host"), client.worker()
    await job_harness.start(host, bot, Speaker("a"))
    await client.connect()
    payload = {"chunks": words("one"), "waits": True}
    job_id = await host.request_job("a", name="speak", payload=payload)

    ClientJobs(bot, stream_interval=NEVER).follow(host)
    await host.worker_runner.get_worker("a").streamed.wait()
    await job_harness.settle()
    await host.cancel_job_group(job_id)
    await client.request({})

    assert of_streams(client) == []


async def test_nothing_is_kept_of_jobs_that_have_ended(job_harness: JobHarness, client: Client):
    host = await start(job_harness, client)
    payloads = {"a": {"chunks": words("one")}, "b": {"chunks": [], "breaks": True}}
    with pytest.raises(JobGroupError):
        async with host.job_group("a", "b", name="speak", payloads=payloads):
            pass
    await client.wait_until(lambda: closed(client))
    client.got.clear()

    await client.connect()
    await client.request({})

    assert of_streams(client) == []


def test_a_hundred_chunks_a_second_become_ten_messages():
    class Steady(BaseWorker):
        @job(name="speak")
        async def speak(self) -> AsyncIterator[dict[str, int]]:
            for number in range(205):
                yield {"number": number}
                await asyncio.sleep(0.01)

    async def main() -> Client:
        client = Client()
        host, bot = BaseWorker("host"), client.worker()
        ClientJobs(bot, stream_interval=0.1).follow(host)
        async with JobHarness(RoutedBus()) as harness:
            await harness.start(host, bot, Steady("a"))
            await host.job("a", name="speak")
            await client.wait_until(lambda: closed(client))
        return client

    client = run_virtual(main())
    assert [chunk["number"] for chunk in heard(client)] == list(range(205))
    assert len(of_streams(client)) in (21, 22)


@pytest.mark.parametrize(
    ("interval", "error", "words"),
    [
        (0, InvalidJobError, "stream_interval is 0; give more than zero seconds"),
        (True, InvalidJobTypeError, "stream_interval is True; give seconds as a number"),
        ("fast", InvalidJobTypeError, "stream_interval is 'fast'; give seconds as a number"),
    ],
)
def test_a_wrong_interval_is_refused(interval: Any, error: type[Exception], words: str):
    with pytest.raises(error, match=words):
        ClientJobs(Client().worker(), stream_interval=interval)
