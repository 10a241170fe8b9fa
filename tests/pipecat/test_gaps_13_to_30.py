"""The second half of the list that test_gaps_01_to_12.py begins.

The number in a test's name is the row's. Rows 25 to 29 and 31 to 32 are about LLM turns, cost and
network buses.
"""

import asyncio
from collections.abc import Callable

import pytest
from pipecat.bus import WorkerBus
from pipecat.bus.messages import (
    BusJobCancelMessage,
    BusJobRequestMessage,
    BusJobResponseMessage,
    BusJobUpdateMessage,
)
from pipecat.pipeline.job_context import JobStatus
from support.workers import Requester, Responder

from pipecat_jobs import (
    BaseWorker,
    InvalidJobError,
    JobError,
    JobTimeoutError,
    OutcomeStatus,
    WorkerNotReadyError,
    job,
)
from pipecat_jobs.testing import ChaosBus, JobHarness, run_virtual

pytestmark = pytest.mark.every_bus


async def test_gap_13_a_worker_not_ready_in_time_is_a_job_error_that_names_it(
    job_harness: JobHarness,
):
    requester = Requester()
    await job_harness.start(requester, Responder())

    with pytest.raises(WorkerNotReadyError, match=r"'ghost' not ready within 0\.01 s") as caught:
        await requester.ask("ghost", "echo", timeout=0.01)

    assert isinstance(caught.value, JobError)
    assert "'responder'" in str(caught.value), "the workers that are known help find the typo"


def test_gap_14_readiness_and_work_share_one_deadline(new_local_bus: Callable[[], WorkerBus]):
    async def main() -> None:
        async with JobHarness(new_local_bus()) as harness:
            requester = Requester()
            await harness.start(requester)
            loop = asyncio.get_running_loop()
            asked_at = loop.time()
            call_task = asyncio.create_task(requester.ask("late", "wait", timeout=1.0))
            await asyncio.sleep(0.6)
            late = Responder("late")
            await harness.start(late)
            with pytest.raises(JobTimeoutError) as caught:
                await call_task
            assert loop.time() - asked_at == pytest.approx(1.0)
            outcome = caught.value.outcomes["late"]
            assert outcome.waited == pytest.approx(0.6)
            assert outcome.ran == pytest.approx(0.4)

    run_virtual(main())


@pytest.mark.parametrize("status", [JobStatus.FAILED, JobStatus.ERROR])
async def test_gap_15_a_failure_quotes_the_error_of_the_worker(
    job_harness: JobHarness, status: JobStatus
):
    class Failing(BaseWorker):
        async def on_job_request(self, message: BusJobRequestMessage) -> None:
            response = {"error": "quota used up", "retry_after": 60}
            await self.send_job_response(message.job_id, response, status=status)

    requester = Requester()
    await job_harness.start(requester, Failing("failing"))

    with pytest.raises(JobError, match="quota used up") as caught:
        await requester.ask("failing")

    outcome = caught.value.outcomes["failing"]
    assert outcome.status == status
    assert outcome.response == {"error": "quota used up", "retry_after": 60}


async def test_gap_16_failed_workers_are_recorded_when_the_group_goes_on(job_harness: JobHarness):
    requester = Requester()

    class Failing(Responder):
        @job(name="echo")
        async def echo(self, message: BusJobRequestMessage) -> dict:
            raise ValueError("not today")

    await job_harness.start(requester, Responder("good"), Failing("bad"))

    async with requester.job_group("good", "bad", name="echo", cancel_on_error=False) as group:
        pass

    assert group.outcomes["good"].completed
    assert group.outcomes["bad"].status is OutcomeStatus.ERROR
    assert group.outcomes["bad"].cause == "ValueError: not today"


async def test_gap_17_a_worker_named_twice_is_refused(job_harness: JobHarness):
    requester = Requester()
    await job_harness.start(requester)
    with pytest.raises(InvalidJobError, match="'a' is named twice"):
        requester.job_group("a", "b", "a")
    with pytest.raises(InvalidJobError, match="'a' is named twice"):
        await requester.request_job_group("a", "a")


async def test_gap_18_an_empty_group_is_refused(job_harness: JobHarness):
    requester = Requester()
    await job_harness.start(requester)
    with pytest.raises(InvalidJobError, match="at least one worker"):
        requester.job_group()
    with pytest.raises(InvalidJobError, match="at least one worker"):
        await requester.create_job_group_and_request_job([])


async def test_gap_19_dispatches_leave_no_registry_watch_behind(job_harness: JobHarness):
    requester = Requester()
    await job_harness.start(requester, Responder())

    for _ in range(100):
        await requester.ask("responder", "echo")
    with pytest.raises(WorkerNotReadyError):
        await requester.ask("ghost", timeout=0)

    await job_harness.settle()
    assert job_harness.left_behind() == []


async def test_gap_20_updates_that_arrive_while_requests_are_sent_are_not_missed(
    chaos_harness: JobHarness, chaos_bus: ChaosBus
):
    class Quick(BaseWorker):
        async def on_job_request(self, message: BusJobRequestMessage) -> None:
            await self.send_job_update(message.job_id, {"progress": 1})
            await self.send_job_response(message.job_id, {"done": True})

    requester = Requester()
    await chaos_harness.start(requester, Quick("quick"), Quick("other"))
    blocked = chaos_bus.block_publish(
        lambda m: isinstance(m, BusJobRequestMessage) and m.target == "other"
    )

    async def call() -> list[object]:
        async with requester.job_group("quick", "other") as group:
            return [(e.worker_name, e.data) async for e in group if e.type == "update"]

    call_task = asyncio.create_task(call())
    await blocked.wait()
    await chaos_bus.wait_for(BusJobResponseMessage)
    await chaos_harness.settle()
    blocked.release()

    assert await call_task == [("quick", {"progress": 1}), ("other", {"progress": 1})]


async def test_gap_21_a_request_delivered_twice_runs_once(
    chaos_harness: JobHarness, chaos_bus: ChaosBus, job_log
):
    requester, responder = Requester(), Responder()
    await chaos_harness.start(requester, responder)
    chaos_bus.duplicate(BusJobRequestMessage, times=2)

    await requester.ask("responder", "echo", job_id="once")
    await chaos_harness.settle()

    assert responder.ran == ["once"]
    assert sum("second request for job 'once'" in record.message for record in job_log) == 2


async def test_gap_22_a_response_from_a_worker_that_was_not_asked_is_ignored(
    job_harness: JobHarness,
):
    requester, responder = Requester(), Responder()
    await job_harness.start(requester, responder)
    async with requester.job("responder", name="wait") as j:
        unrelated = {"source": "unrelated", "target": "requester", "job_id": j.job_id}
        await job_harness.bus.send(BusJobUpdateMessage(**unrelated))
        await job_harness.bus.send(BusJobResponseMessage(**unrelated, status=JobStatus.COMPLETED))
        await job_harness.settle()
        assert requester.fired() == []
        responder.release.set()

    assert j.response == {"from": "responder"}


async def test_gap_23_a_hook_that_raises_loses_no_response(job_harness: JobHarness, job_log):
    class Broken(Requester):
        async def on_job_response(self, message: BusJobResponseMessage) -> None:
            raise KeyError("broken")

    requester = Broken()
    await job_harness.start(requester, Responder())

    assert (await requester.ask("responder", "echo"))["from"] == "responder"
    assert [type(record.exception) for record in job_log if record.exception] == [KeyError]


async def test_gap_24_a_second_job_waits_for_a_worker_that_does_one_job_at_a_time(
    job_harness: JobHarness,
):
    """The same test with the DebateWorker of the document is in test_seed_debate.py."""

    class OneAtATime(BaseWorker):
        job_request_concurrency = 1

        def __init__(self) -> None:
            super().__init__("single")
            self.asked: asyncio.Queue[BusJobRequestMessage] = asyncio.Queue()

        async def on_job_request(self, message: BusJobRequestMessage) -> None:
            self.asked.put_nowait(message)

    requester, worker = Requester(), OneAtATime()
    await job_harness.start(requester, worker)
    first = asyncio.create_task(requester.ask("single", payload={"n": 1}))
    message = await worker.asked.get()
    second = asyncio.create_task(requester.ask("single", payload={"n": 2}))
    await job_harness.settle()
    assert worker.asked.empty()

    await worker.send_job_response(message.job_id, message.payload)
    assert await first == {"n": 1}
    message = await worker.asked.get()
    await worker.send_job_response(message.job_id, message.payload)
    assert await second == {"n": 2}


@pytest.mark.not_on("redis", reason="the wire drops it")
async def test_gap_30_a_malformed_message_is_dropped_and_the_worker_goes_on(
    job_harness: JobHarness, job_log
):
    """A decoded message is checked before it is used."""
    requester, responder = Requester(), Responder()
    await job_harness.start(requester, responder)
    broken = [
        BusJobRequestMessage(source="requester", target="responder", job_id=None),  # type: ignore[arg-type]
        BusJobRequestMessage(source=7, target="responder", job_id="j"),  # type: ignore[arg-type]
        BusJobRequestMessage(source="requester", target="responder", job_id="j", payload="text"),  # type: ignore[arg-type]
        BusJobRequestMessage(source="requester", target="responder", job_id="j", job_name=["echo"]),  # type: ignore[arg-type]
        BusJobCancelMessage(source="requester", target="responder", job_id=["j"]),  # type: ignore[arg-type]
        BusJobResponseMessage(source="responder", target="requester", job_id="j", status="great"),  # type: ignore[arg-type]
        BusJobResponseMessage(
            source="responder",
            target="requester",
            job_id="j",
            status=JobStatus.COMPLETED,
            response=[1],  # type: ignore[arg-type]
        ),
        BusJobUpdateMessage(source="responder", target="requester", job_id="j", update="half"),  # type: ignore[arg-type]
    ]
    for message in broken:
        await job_harness.bus.send(message)
    await job_harness.settle()

    assert sum("dropping" in record.message for record in job_log) == len(broken)
    assert (await requester.ask("responder", "echo"))["from"] == "responder"
