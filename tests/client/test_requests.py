"""What the client of a bot may ask: to cancel a job. Whatever else it sends is refused."""

import asyncio
from typing import Any

import pytest
from pipecat.bus.messages import BusJobRequestMessage
from pipecat.pipeline.worker import PipelineWorker as PipecatPipelineWorker
from support import peers_ui
from support.client import Client
from support.peers import PlainPeer
from support.peers_ui import MakeUI
from support.workers import until

from pipecat_jobs import (
    BaseWorker,
    ClientJobs,
    InvalidJobError,
    InvalidJobTypeError,
    JobCancelledError,
    OpenJob,
    job,
)
from pipecat_jobs.testing import JobHarness

make = peers_ui.make


class Waiting(BaseWorker):
    def __init__(self, name: str):
        super().__init__(name)
        self.release = asyncio.Event()
        self.cancelled: list[str] = []

    @job(name="wait")
    async def wait_for_release(self, message: BusJobRequestMessage) -> dict[str, Any]:
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.append(message.job_id)
            raise
        return {}


@pytest.fixture
async def client(job_harness: JobHarness) -> Client:
    return Client()


@pytest.fixture
async def worker(job_harness: JobHarness) -> Waiting:
    worker = Waiting("a")
    await job_harness.start(worker)
    return worker


@pytest.fixture
async def host(job_harness: JobHarness, client: Client, worker: Waiting) -> BaseWorker:
    host, bot = BaseWorker("host"), client.worker(worker_class=PipecatPipelineWorker)
    ClientJobs(bot).follow(host)
    await job_harness.start(host, bot)
    await client.connect()
    return host


def cancel(job_id: str, **more: Any) -> dict[str, Any]:
    return {"action": "cancel", "job_id": job_id, **more}


async def wait_for_error(client: Client, message_id: str) -> str:
    response = await client.wait_for(lambda message: message.get("id") == message_id)
    assert response["type"] == "error-response"
    return response["data"]["error"]


async def test_the_client_cancels_a_job_and_gets_a_response(
    host: BaseWorker, client: Client, worker: Waiting
):
    with pytest.raises(JobCancelledError, match="not that one"):
        async with host.job("a", name="wait") as j:
            response = await client.request(cancel(j.job_id, reason="not that one"))

    assert response["type"] == "server-response"
    assert response["data"] == {"t": "pipecat-jobs", "d": {"cancelled": j.job_id}}
    await until(lambda: worker.cancelled == [j.job_id])
    await client.wait_until(lambda: ("closed",) in client.cards())
    assert client.cards()[1][:3] == ("completed", "a", "cancelled")


async def test_the_client_cancels_a_job_with_the_button_of_its_card(
    host: BaseWorker, client: Client, worker: Waiting
):
    with pytest.raises(JobCancelledError, match="cancelled by the user"):
        async with host.job("a", name="wait") as j:
            message_id = await client.send("ui-cancel-job-group", {"job_id": j.job_id})
    await client.wait_until(lambda: ("closed",) in client.cards())

    await until(lambda: worker.cancelled == [j.job_id])
    assert not [message for message in client.got if message.get("id") == message_id]


async def test_a_job_that_is_not_cancellable_is_refused_and_goes_on(
    host: BaseWorker, client: Client, worker: Waiting
):
    async with host.job("a", name="wait", cancellable=False) as j:
        response = await client.request(cancel(j.job_id))
        message_id = await client.send("ui-cancel-job-group", {"job_id": j.job_id})
        again = await wait_for_error(client, message_id)
        worker.release.set()

    assert response["type"] == "error-response"
    assert response["data"]["error"] == again == f"job '{j.job_id}' cannot be cancelled"
    assert client.of_type("ui-job-group")[0]["cancellable"] is False


async def test_a_job_that_has_ended_or_never_was_is_refused(
    host: BaseWorker, client: Client, worker: Waiting
):
    worker.release.set()
    async with host.job("a", name="wait") as j:
        pass

    for job_id in (j.job_id, "other"):
        response = await client.request(cancel(job_id))
        assert response["type"] == "error-response"
        assert response["data"]["error"] == (
            f"there is no open job '{job_id}': it has ended, or the id is wrong"
        )


async def test_a_job_that_the_client_does_not_see_is_unknown_to_it(
    job_harness: JobHarness, client: Client, worker: Waiting
):
    class Labelled(ClientJobs):
        def shows_job(self, job: OpenJob) -> bool:
            return job.label is not None

    host, bot = BaseWorker("host"), client.worker()
    Labelled(bot).follow(host)
    await job_harness.start(host, bot)

    async with host.job("a", name="wait") as j:
        response = await client.request(cancel(j.job_id))
        await client.send("ui-cancel-job-group", {"job_id": j.job_id})
        await client.request({})
        worker.release.set()

    assert "there is no open job" in response["data"]["error"]
    assert worker.cancelled == []


async def test_a_job_that_a_worker_does_for_others_cannot_be_cancelled_there(
    job_harness: JobHarness, client: Client, worker: Waiting
):
    host, bot = BaseWorker("host"), client.worker()
    ClientJobs(bot).follow(worker)
    await job_harness.start(host, bot)

    async with host.job("a", name="wait") as j:
        response = await client.request(cancel(j.job_id))
        worker.release.set()

    assert "there is no open job" in response["data"]["error"]


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "data",
    [
        *(None, 7, "cancel", [], {}, {"action": "explode"}, {"action": ["cancel"]}),
        *({"action": "cancel"}, cancel("")),
        *({"action": "cancel", "job_id": job_id} for job_id in (None, 7, {}, [])),
        *(cancel("x" * 201), cancel("\ud800"), cancel("x", reason={"text": "y"})),
        *(nested(900), {"action": nested(900)}),
    ],
)
async def test_what_is_not_a_request_is_refused_with_a_short_text(
    host: BaseWorker, client: Client, job_log: list[Any], data: Any
):
    response = await client.request(data)

    assert response["type"] == "error-response"
    assert 0 < len(response["data"]["error"]) <= 200
    assert [r.message for r in job_log if r.level == "ERROR"] == []


@pytest.mark.parametrize("reason", ["\ud800", "y" * 1_001, 7])
async def test_a_cancel_with_a_reason_that_is_refused_cancels_nothing(
    host: BaseWorker, client: Client, worker: Waiting, reason: Any
):
    async with host.job("a", name="wait") as j:
        response = await client.request(cancel(j.job_id, reason=reason))
        worker.release.set()

    assert response["type"] == "error-response"
    assert response["data"]["error"].startswith("cancel.reason: ")


async def test_other_messages_of_the_client_are_left_alone(host: BaseWorker, client: Client):
    message_id = await client.send("client-message", {"t": "mine", "d": cancel("x")})
    await client.send("ui-event", {"event": "nav", "payload": {}})
    await client.request({})

    assert not [message for message in client.got if message.get("id") == message_id]


async def test_a_hook_of_the_bot_that_raises_gives_the_client_an_error(
    job_harness: JobHarness, client: Client, worker: Waiting, job_log: list[Any]
):
    class Broken(BaseWorker):
        async def request_cancel_job_group(self, job_id: str, *, reason: str | None = None) -> bool:
            raise ValueError("a bug of the bot")

    host, bot = Broken("host"), client.worker()
    ClientJobs(bot).follow(host)
    await job_harness.start(host, bot)

    async with host.job("a", name="wait") as j:
        response = await client.request(cancel(j.job_id))
        worker.release.set()

    assert response["data"]["error"] == "the bot had an internal error"
    assert [r.exception for r in job_log if r.level == "ERROR" and r.exception]


async def test_a_ui_worker_that_is_followed_shows_each_card_once(
    make: MakeUI, job_harness: JobHarness, client: Client, worker: Waiting
):
    ui, bot = make(), client.worker(worker_class=PipecatPipelineWorker)
    ClientJobs(bot).follow(ui)
    await job_harness.start(ui, bot)
    await client.connect()

    for way in ("client-message", "ui-cancel-job-group"):
        client.got.clear()
        with pytest.raises(JobCancelledError):
            async with ui.job("a", name="wait") as j:
                await client.wait_until(lambda: ("started", "a") in client.cards())
                if way == "client-message":
                    await client.request(cancel(j.job_id))
                else:
                    await client.send(way, {"job_id": j.job_id})
        await client.wait_until(lambda: ("closed",) in client.cards())
        await client.request({})
        assert [event[0] for event in client.cards()] == ["started", "completed", "closed"]
    assert [m for m in client.got if m["type"] == "error-response"][:-1] == []


async def test_a_card_of_a_ui_worker_beside_is_left_to_it(
    make: MakeUI, host: BaseWorker, job_harness: JobHarness, client: Client
):
    ui = make()
    await job_harness.start(ui)

    with pytest.raises(JobCancelledError):
        async with ui.job("a", name="wait") as j:
            message_id = await client.send("ui-cancel-job-group", {"job_id": j.job_id})
    await client.wait_until(lambda: ("closed",) in client.cards())
    await client.request({})

    assert not [message for message in client.got if message.get("id") == message_id]


async def test_a_worker_without_rtvi_is_refused():
    bot = Client().worker(enable_rtvi=False)
    with pytest.raises(InvalidJobError, match="'bot' has no RTVI processor; give ClientJobs"):
        ClientJobs(bot)


async def test_nonsense_is_refused_at_the_door():
    bot = Client().worker()
    with pytest.raises(InvalidJobTypeError, match=r"worker is .*; give the PipelineWorker whose"):
        ClientJobs(BaseWorker("host"))  # pyright: ignore[reportArgumentType]
    with pytest.raises(InvalidJobError, match="update_interval is 0; give more than zero"):
        ClientJobs(bot, update_interval=0)
    with pytest.raises(InvalidJobTypeError, match=r"follow\(\) is .*; give workers of"):
        ClientJobs(bot).follow(PlainPeer("plain"))  # pyright: ignore[reportArgumentType]
