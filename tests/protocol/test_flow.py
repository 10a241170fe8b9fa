"""Flow control: only a worker that streams faster than its reader waits."""

import asyncio

import pytest
from pipecat.bus import WorkerBus
from pipecat.bus.messages import BusJobRequestMessage, BusJobStreamDataMessage
from pipecat.workers.base_worker import BaseWorker as PipecatBaseWorker
from support.buses import BusHarness
from support.workers import Requester

from pipecat_jobs import (
    BaseWorker,
    JobCancelledError,
    JobContext,
    JobEvent,
    JobGroupParams,
    JobTimeoutError,
    UnknownJobError,
    job,
)
from pipecat_jobs.testing import ChaosBus, JobHarness

pytestmark = pytest.mark.not_on(
    "redis", "pubsub", reason="a server holds more than the window: tests/bus/redis/test_streams.py"
)

ALL = 20


class Streamer(BaseWorker):
    """Streams a count, and keeps how many chunks it has sent."""

    def __init__(self, name: str = "streamer"):
        super().__init__(name)
        self.sent = 0
        self.job_ids: asyncio.Queue[str] = asyncio.Queue()
        self.cancelled = asyncio.Event()

    @job(name="count")
    async def count(self, message: BusJobRequestMessage):
        try:
            for number in range(ALL):
                yield {"number": number}
                self.sent += 1
        except (GeneratorExit, asyncio.CancelledError):
            self.cancelled.set()
            raise

    @job(name="hold")
    async def hold(self, message: BusJobRequestMessage) -> None:
        self.job_ids.put_nowait(message.job_id)


async def numbers(events: JobContext) -> list[int]:
    return [event.data["number"] async for event in events if event.type == JobEvent.STREAM_DATA]


async def started(harness: JobHarness, *workers: BaseWorker) -> Requester:
    requester = Requester()
    await harness.start(requester, *workers)
    return requester


async def test_a_worker_waits_for_its_reader(job_harness: JobHarness):
    requester = await started(job_harness, streamer := Streamer())
    async with requester.job("streamer", name="count", unread_limit=3) as j:
        assert (await anext(j)).type == JobEvent.STREAM_START
        await job_harness.settle()
        assert streamer.sent == 3
        assert (await anext(j)).data == {"number": 0}
        await job_harness.settle()
        assert streamer.sent == 4
        assert await numbers(j) == list(range(1, ALL))
    assert streamer.sent == ALL


async def test_a_stream_that_is_not_read_is_not_delayed_and_loses_nothing(
    job_harness: JobHarness,
):
    requester = await started(job_harness, streamer := Streamer())
    async with requester.job("streamer", name="count", unread_limit=3) as j:
        await job_harness.settle()
        assert streamer.sent == ALL
    assert await numbers(j) == list(range(ALL))


async def test_leaving_the_block_resumes_the_worker(job_harness: JobHarness):
    requester = await started(job_harness, streamer := Streamer())
    async with requester.job("streamer", name="count", unread_limit=3, timeout=30) as j:
        async for event in j:
            if event.type == JobEvent.STREAM_DATA:
                break
        await job_harness.settle()
        assert streamer.sent == 4
    assert streamer.sent == ALL
    assert await numbers(j) == list(range(1, ALL))


async def test_without_a_limit_nothing_waits(job_harness: JobHarness):
    requester = await started(job_harness, streamer := Streamer())
    async with requester.job("streamer", name="count", unread_limit=0) as j:
        await anext(j)
        await job_harness.settle()
        assert streamer.sent == ALL


async def test_a_stream_has_a_limit_by_default(job_harness: JobHarness):
    assert JobGroupParams().unread_limit == 1_000
    requester = await started(job_harness, streamer := Streamer())
    async with requester.job("streamer", name="hold") as j:
        job_id = await streamer.job_ids.get()

        async def flood() -> None:
            while True:
                await streamer.send_job_stream_data(job_id, {})
                streamer.sent += 1

        await streamer.send_job_stream_start(job_id)
        await anext(j)
        flooding = asyncio.create_task(flood())
        await job_harness.settle()
        assert streamer.sent == 1_000
        await streamer.send_job_response(job_id)
    with pytest.raises(UnknownJobError):
        await flooding


async def test_a_response_is_not_delayed_by_the_stream_before_it(job_harness: JobHarness):
    requester = await started(job_harness, streamer := Streamer())
    async with requester.job("streamer", name="hold", unread_limit=1) as j:
        job_id = await streamer.job_ids.get()
        await streamer.send_job_stream_start(job_id)
        await anext(j)
        await streamer.send_job_stream_data(job_id, {"number": 0})
        more = asyncio.create_task(streamer.send_job_stream_data(job_id, {"number": 1}))
        await job_harness.settle()
        assert not more.done()
        await streamer.send_job_stream_end(job_id, {"total": 1})
        assert await numbers(j) == [0]
    assert j.response == {"total": 1}
    with pytest.raises(UnknownJobError):
        await more


async def test_a_cancel_reaches_a_worker_that_waits(job_harness: JobHarness):
    requester = await started(job_harness, streamer := Streamer())
    with pytest.raises(ZeroDivisionError):
        async with requester.job("streamer", name="count", unread_limit=3) as j:
            await anext(j)
            await job_harness.settle()
            raise ZeroDivisionError
    await job_harness.settle()
    assert streamer.cancelled.is_set()
    assert streamer.sent == 3


async def test_the_deadline_reaches_a_worker_that_waits(job_harness: JobHarness):
    requester = await started(job_harness, streamer := Streamer())
    with pytest.raises(JobTimeoutError):
        async with requester.job("streamer", name="count", unread_limit=3, timeout=0.3) as j:
            await anext(j)
            await streamer.cancelled.wait()
    assert streamer.sent == 3


async def test_cancelling_the_job_resumes_a_waiting_worker(job_harness: JobHarness):
    requester = await started(job_harness, streamer := Streamer())
    with pytest.raises(JobCancelledError):
        async with requester.job("streamer", name="hold", unread_limit=1) as j:
            job_id = await streamer.job_ids.get()
            await streamer.send_job_stream_start(job_id)
            await anext(j)
            await streamer.send_job_stream_data(job_id, {"number": 0})
            more = asyncio.create_task(streamer.send_job_stream_data(job_id, {"number": 1}))
            await job_harness.settle()
            await requester.cancel_job_group(job_id)
            with pytest.raises(UnknownJobError):
                await more


async def test_each_worker_of_a_group_has_its_own_window(job_harness: JobHarness):
    streamers = [Streamer("a"), Streamer("b")]
    requester = await started(job_harness, *streamers)
    async with requester.job_group("a", "b", name="count", unread_limit=3) as group:
        await anext(group)
        await job_harness.settle()
        assert [streamer.sent for streamer in streamers] == [3, 3]
        read = [event async for event in group if event.type == JobEvent.STREAM_DATA]
    for name in ("a", "b"):
        assert [event.data["number"] for event in read if event.worker_name == name] == list(
            range(ALL)
        )


async def test_a_worker_waits_for_a_slow_hook(job_harness: JobHarness):
    class SlowRequester(Requester):
        gate = asyncio.Semaphore(0)

        async def on_job_stream_data(self, message: BusJobStreamDataMessage) -> None:
            await self.gate.acquire()

    requester, streamer = SlowRequester(), Streamer()
    await job_harness.start(requester, streamer)
    async with requester.job("streamer", name="count", unread_limit=3):
        await job_harness.settle()
        assert streamer.sent == 3
        requester.gate.release()
        await job_harness.settle()
        assert streamer.sent == 4
        for _ in range(ALL):
            requester.gate.release()
    assert requester.fired().count("on_job_stream_data") == ALL


async def test_a_chunk_that_arrives_twice_counts_once(
    chaos_harness: JobHarness, chaos_bus: ChaosBus
):
    requester = await started(chaos_harness, streamer := Streamer())
    chaos_bus.duplicate(BusJobStreamDataMessage)
    async with requester.job("streamer", name="count", unread_limit=4) as j:
        await anext(j)
        await chaos_harness.settle()
        assert streamer.sent == 4
        # Eight chunks are unread and four are allowed: reading one does not resume the worker.
        await anext(j)
        await chaos_harness.settle()
        assert streamer.sent == 4
        assert {0, *await numbers(j)} == set(range(ALL))


async def test_a_chunk_that_the_bus_refuses_does_not_count_as_unread(
    chaos_harness: JobHarness, chaos_bus: ChaosBus, monkeypatch: pytest.MonkeyPatch
):
    requester = await started(chaos_harness, streamer := Streamer())
    send = chaos_bus.send

    async def refuse(message: object) -> None:
        if isinstance(message, BusJobStreamDataMessage) and message.data == {"number": -1}:
            raise ConnectionError("bus is down")
        await send(message)

    monkeypatch.setattr(chaos_bus, "send", refuse)
    async with requester.job("streamer", name="hold", unread_limit=1) as j:
        job_id = await streamer.job_ids.get()
        await streamer.send_job_stream_start(job_id)
        await anext(j)
        for _ in range(3):
            with pytest.raises(ConnectionError):
                await streamer.send_job_stream_data(job_id, {"number": -1})
        await streamer.send_job_stream_data(job_id, {"number": 7})
        await streamer.send_job_stream_end(job_id)
        assert await numbers(j) == [7]


async def test_a_plain_pipecat_requester_does_not_delay_a_stream(bus: WorkerBus):
    plain, streamer = PipecatBaseWorker("plain"), Streamer()
    async with BusHarness(bus, check_watches=False) as harness:
        await harness.start(plain, streamer)
        params = JobGroupParams(name="count", unread_limit=3)
        async with plain.job_group("streamer", params=params) as group:
            await anext(group)
            await harness.settle()
            assert streamer.sent == ALL


# Updates of which only the latest is kept


async def updates(job_harness: JobHarness, latest_update_only: bool) -> list[object]:
    requester = await started(job_harness, streamer := Streamer(), Streamer("other"))
    async with requester.job_group(
        "streamer", "other", name="hold", latest_update_only=latest_update_only
    ) as group:
        job_id = await streamer.job_ids.get()
        other = job_harness.runner.get_worker("other")
        assert isinstance(other, Streamer)
        await streamer.send_job_update(job_id, {"percent": 10})
        await other.send_job_update(job_id, {"percent": 5})
        await streamer.send_job_stream_start(job_id)
        await streamer.send_job_update(job_id, {"percent": 20})
        await streamer.send_job_stream_data(job_id, {"text": "a"})
        await streamer.send_job_update(job_id, {"percent": 30})
        await streamer.send_job_response(job_id)
        await other.send_job_response(job_id)
        await job_harness.settle()
        read = [(event.worker_name, event.type, event.data) async for event in group]
    await job_harness.settle()
    assert requester.fired().count("on_job_update") == 4
    return [
        (name, data) for name, kind, data in read if kind not in (JobEvent.STREAM_START, "response")
    ]


async def test_a_newer_update_of_the_same_worker_replaces_an_unread_one(
    job_harness: JobHarness,
):
    assert await updates(job_harness, latest_update_only=True) == [
        ("other", {"percent": 5}),
        ("streamer", {"text": "a"}),
        ("streamer", {"percent": 30}),
    ]


async def test_every_update_is_kept_by_default(job_harness: JobHarness):
    assert await updates(job_harness, latest_update_only=False) == [
        ("streamer", {"percent": 10}),
        ("other", {"percent": 5}),
        ("streamer", {"percent": 20}),
        ("streamer", {"text": "a"}),
        ("streamer", {"percent": 30}),
    ]


async def test_an_update_that_was_read_is_not_replaced(job_harness: JobHarness):
    requester = await started(job_harness, streamer := Streamer())
    async with requester.job("streamer", name="hold", latest_update_only=True) as j:
        job_id = await streamer.job_ids.get()
        for percent in (10, 20):
            await streamer.send_job_update(job_id, {"percent": percent})
            assert (await anext(j)).data == {"percent": percent}
        await streamer.send_job_response(job_id)
