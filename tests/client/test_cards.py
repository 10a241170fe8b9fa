"""The cards that the client of a bot gets of its jobs."""

import asyncio
from typing import Any

import pytest
from pipecat.bus.messages import BusJobRequestMessage
from pipecat.pipeline.worker import PipelineWorker as PipecatPipelineWorker
from support.client import Client
from support.peers import OurPeer, PlainPeer
from support.workers import until

from pipecat_jobs import (
    BaseWorker,
    ClientJobs,
    JobError,
    JobGroupError,
    JobTimeoutError,
    JobToolError,
    OpenJob,
    RoutedBus,
    job,
)
from pipecat_jobs.testing import JobHarness, run_virtual


class Researcher(BaseWorker):
    """Sends the updates that the payload has, then does what it says."""

    def __init__(self, name: str):
        super().__init__(name)
        self.started = asyncio.Event()
        self.release = asyncio.Event()

    @job(name="research")
    async def research(self, message: BusJobRequestMessage) -> Any:
        payload = message.payload or {}
        for update in payload.get("updates", ()):
            await self.send_job_update(message.job_id, update)
        self.started.set()
        if payload.get("waits"):
            await self.release.wait()
        if "refuses" in payload:
            raise JobToolError(payload["refuses"])
        if "breaks" in payload:
            raise ValueError(payload["breaks"])
        return payload.get("found", {"pages": 3})


@pytest.fixture
async def client(job_harness: JobHarness) -> Client:
    return Client()


@pytest.fixture
async def host(job_harness: JobHarness, client: Client) -> BaseWorker:
    """A requester that is followed, beside the bot with the transport."""
    host, bot = BaseWorker("host"), client.worker(worker_class=PipecatPipelineWorker)
    ClientJobs(bot).follow(host)
    await job_harness.start(host, bot, Researcher("a"), Researcher("b"), PlainPeer("plain"))
    await client.connect()
    return host


def closed(client: Client) -> bool:
    return ("closed",) in client.cards()


async def test_a_job_shows_a_card_with_its_label_its_update_and_its_response(
    host: BaseWorker, client: Client
):
    payload = {"updates": [{"page": 1}]}
    async with host.job("a", name="research", payload=payload, label="Looking it up") as j:
        pass
    await client.wait_until(lambda: closed(client))

    assert client.cards() == [
        ("started", "a"),
        ("update", "a", {"page": 1}),
        ("completed", "a", "completed", {"pages": 3}),
        ("closed",),
    ]
    started, *rest = client.of_type("ui-job-group")
    assert (started["label"], started["cancellable"]) == ("Looking it up", True)
    assert {data["job_id"] for data in (started, *rest)} == {j.job_id}
    times = [data["at"] for data in (started, *rest)]
    assert times == sorted(times)
    assert times[0] > 1_600_000_000_000


async def test_a_group_has_one_card_which_closes_once_all_have_ended(
    host: BaseWorker, client: Client
):
    async with host.job_group("a", "b", name="research"):
        pass
    await client.wait_until(lambda: closed(client))

    shown = client.cards()
    assert shown[0] == ("started", "a", "b")
    assert sorted(shown[1:3]) == [
        ("completed", "a", "completed", {"pages": 3}),
        ("completed", "b", "completed", {"pages": 3}),
    ]
    assert shown[3:] == [("closed",)]
    assert client.of_type("ui-job-group")[0]["label"] == "research"


async def test_a_plain_worker_is_shown_as_well(host: BaseWorker, client: Client):
    await host.job("plain", name="update")
    await client.wait_until(lambda: closed(client))

    assert ("completed", "plain", "completed", {"steps": 2}) in client.cards()


@pytest.mark.parametrize(
    ("payload", "status", "error"),
    [
        ({"refuses": "no such book"}, "failed", "no such book"),
        ({"breaks": "/home/secret"}, "error", "Looking had an internal error (ValueError)"),
    ],
)
async def test_a_failure_is_shown_without_the_text_of_exceptions(
    host: BaseWorker, client: Client, payload: dict[str, str], status: str, error: str
):
    with pytest.raises(JobError):
        await host.job("a", name="research", payload=payload, label="Looking")
    await client.wait_until(lambda: closed(client))

    assert client.cards()[1:] == [("completed", "a", status, {"error": error}), ("closed",)]


async def test_a_timeout_is_shown_as_cancelled_and_says_so(host: BaseWorker, client: Client):
    with pytest.raises(JobTimeoutError):
        await host.job("a", name="research", payload={"waits": True}, timeout=0.05, label="It")
    await client.wait_until(lambda: closed(client))

    error = {"error": "It did not answer in time"}
    assert client.cards()[1:] == [("completed", "a", "cancelled", error), ("closed",)]


async def test_a_worker_that_is_lost_is_shown_as_an_error(host: BaseWorker, client: Client):
    worker = host.worker_runner.get_worker("a")
    await host.request_job("a", name="research", payload={"waits": True})
    await worker.started.wait()
    await host.worker_lost("a", reason="its process was killed")
    await client.wait_until(lambda: closed(client))

    error = {"error": "research went away without an answer"}
    assert client.cards()[1:] == [("completed", "a", "error", error), ("closed",)]


async def test_a_worker_that_is_not_ready_closes_its_card(host: BaseWorker, client: Client):
    with pytest.raises(JobTimeoutError):
        await host.job("nobody", name="research", timeout=0.05)
    await client.wait_until(lambda: closed(client))

    assert [event[0] for event in client.cards()] == ["started", "completed", "closed"]


async def test_a_job_that_is_not_needed_closes_the_card_without_an_error(
    host: BaseWorker, client: Client
):
    payloads = {"a": {}, "b": {"waits": True}}
    async with host.job_group("a", "b", name="research", payloads=payloads, need="first"):
        pass
    await client.wait_until(lambda: closed(client))

    assert client.cards()[1:] == [
        ("completed", "a", "completed", {"pages": 3}),
        ("completed", "b", "cancelled", None),
        ("closed",),
    ]


async def test_an_error_of_a_group_closes_the_card(host: BaseWorker, client: Client):
    payloads = {"a": {"refuses": "no"}, "b": {"waits": True}}
    with pytest.raises(JobGroupError):
        async with host.job_group("a", "b", name="research", payloads=payloads):
            pass
    await client.wait_until(lambda: closed(client))

    completed = {event[1]: event[2] for event in client.cards() if event[0] == "completed"}
    assert completed == {"a": "failed", "b": "cancelled"}


async def test_a_client_that_connects_again_gets_the_open_cards(host: BaseWorker, client: Client):
    payloads = {"a": {"updates": [{"page": 1}, {"page": 2}], "waits": True}, "b": {}}
    expected = [
        ("started", "a", "b"),
        ("update", "a", {"page": 2}),
        ("completed", "b", "completed", {"pages": 3}),
    ]
    job_id = await host.request_job_group("a", "b", name="research", payloads=payloads)
    # The first update may have a message of its own.
    await client.wait_until(lambda: all(card in client.cards() for card in expected))
    client.got.clear()

    await client.connect()
    await client.wait_until(lambda: len(client.cards()) >= 3)

    assert client.cards()[:3] == expected
    await host.cancel_job_group(job_id)
    await client.wait_until(lambda: closed(client))


async def test_a_client_that_connects_late_gets_no_card_of_a_job_that_has_ended(
    host: BaseWorker, client: Client
):
    await host.job("a", name="research")
    await client.wait_until(lambda: closed(client))
    client.got.clear()

    await client.connect()
    await client.request({})

    assert client.cards() == []


async def test_data_that_is_not_json_or_too_large_reaches_the_client_as_text(
    host: BaseWorker, client: Client
):
    found = {"at": b"now", "nan": float("nan"), "half": "\ud800"}
    await host.job("a", name="research", payload={"found": found})
    await host.job("a", name="research", payload={"found": {"text": "x" * 70_000}})
    await client.wait_until(lambda: len(client.cards()) == 6)

    (first, second) = [event[3] for event in client.cards() if event[0] == "completed"]
    assert first == {"at": "now", "nan": "nan", "half": "\ufffd"}
    assert second == {"left_out": "70,012 bytes"}


class Picky(ClientJobs):
    def shows_job(self, job: OpenJob) -> bool:
        return job.label is not None

    def select_data(self, job: OpenJob, data: dict[str, Any]) -> object:
        return data["page"]


async def test_a_bot_chooses_what_its_client_sees(job_harness: JobHarness, client: Client):
    host, bot = BaseWorker("host"), client.worker()
    Picky(bot).follow(host)
    await job_harness.start(host, bot, Researcher("a"))

    await host.job("a", name="research")
    shown = {"updates": [{"page": 1, "secret": 7}], "found": {"page": 2, "secret": 7}}
    await host.job("a", name="research", payload=shown, label="Shown")
    await client.wait_until(lambda: closed(client))

    assert client.cards() == [
        ("started", "a"),
        ("update", "a", 1),
        ("completed", "a", "completed", 2),
        ("closed",),
    ]


@pytest.mark.parametrize("method", ["shows_job", "select_data"])
async def test_a_rule_that_raises_is_logged_and_harms_no_job(
    job_harness: JobHarness, client: Client, job_log: list[Any], method: str
):
    def break_down(*_: object) -> bool:
        raise ValueError("a bug of the bot")

    host, bot = BaseWorker("host"), client.worker()
    broken = type("Broken", (ClientJobs,), {method: break_down})
    broken(bot).follow(host)
    await job_harness.start(host, bot, Researcher("a"))

    assert await host.job("a", name="research") == {"pages": 3}

    assert [r.message for r in job_log if isinstance(r.exception, ValueError)] == [
        f"{method}() raised ValueError; going on"
    ]
    if method == "select_data":
        await client.wait_until(lambda: closed(client))
        assert client.cards()[1] == ("completed", "a", "completed", None)


async def test_jobs_that_the_bot_with_the_transport_asks_for_are_shown(
    job_harness: JobHarness, client: Client
):
    bot = client.worker()
    ClientJobs(bot).follow(bot).follow(bot)
    await job_harness.start(bot, OurPeer("a"))

    await bot.job("a", name="echo")
    await client.wait_until(lambda: closed(client))

    assert [event[0] for event in client.cards()] == ["started", "completed", "closed"]


async def test_nothing_is_kept_for_a_client_whose_session_has_ended(
    job_harness: JobHarness, client: Client
):
    class Bot(PipecatPipelineWorker):
        queued = 0

        async def queue_frame(self, *args: Any) -> None:
            self.queued += 1
            await super().queue_frame(*args)

    host, bot = BaseWorker("host"), client.worker(Bot)
    ClientJobs(bot).follow(host)
    await job_harness.start(host, bot, Researcher("a"))
    await host.job("a", name="research")
    await client.wait_until(lambda: closed(client))
    await job_harness.end(bot)
    await until(bot.has_finished)
    queued = bot.queued
    assert queued >= 3

    assert await host.job("a", name="research") == {"pages": 3}
    await job_harness.settle()

    assert bot.queued == queued


def test_a_hundred_updates_a_second_become_two_messages_a_second():
    class Counting(BaseWorker):
        @job(name="count")
        async def count(self, message: BusJobRequestMessage) -> dict[str, int]:
            for number in range(1, 221):
                await self.send_job_update(message.job_id, {"number": number})
                await asyncio.sleep(0.01)
            return {"last": 220}

    async def main() -> list[tuple[Any, ...]]:
        client = Client()
        host, bot = BaseWorker("host"), client.worker()
        ClientJobs(bot).follow(host)
        async with JobHarness(RoutedBus()) as harness:
            await harness.start(host, bot, Counting("a"))
            await host.job("a", name="count")
            await client.wait_until(lambda: closed(client))
        return client.cards()

    shown = run_virtual(main())
    numbers = [event[2]["number"] for event in shown if event[0] == "update"]
    assert numbers[0] == 1
    assert numbers[-1] == 220
    assert len(numbers) == 6
    assert [event[0] for event in shown[-2:]] == ["completed", "closed"]


def test_updates_that_pause_are_sent_in_the_pause():
    class Once(BaseWorker):
        @job(name="count")
        async def count(self, message: BusJobRequestMessage) -> None:
            for number in (1, 2, 3):
                await self.send_job_update(message.job_id, {"number": number})
            await asyncio.sleep(100)

    async def main() -> tuple[list[Any], float]:
        client = Client()
        host, bot = BaseWorker("host"), client.worker()
        ClientJobs(bot, update_interval=2).follow(host)
        async with JobHarness(RoutedBus()) as harness:
            await harness.start(host, bot, Once("a"))
            job_id = await host.request_job("a", name="count")
            asked_at = asyncio.get_running_loop().time()
            await client.wait_until(lambda: len(client.cards()) == 3)
            waited = asyncio.get_running_loop().time() - asked_at
            await host.cancel_job_group(job_id)
        return client.cards()[1:3], waited

    updates, waited = run_virtual(main())
    assert updates == [("update", "a", {"number": 1}), ("update", "a", {"number": 3})]
    assert 2 <= waited < 3
