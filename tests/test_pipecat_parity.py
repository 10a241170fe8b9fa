"""What Pipecat's own users rely on, of Pipecat's workers and of ours alike."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pipecat.bus.messages import (
    BusJobCancelMessage,
    BusJobRequestMessage,
    BusJobResponseMessage,
    BusJobResponseUrgentMessage,
    BusJobStreamDataMessage,
    BusJobStreamEndMessage,
    BusJobStreamStartMessage,
    BusJobUpdateMessage,
    BusJobUpdateRequestMessage,
    BusJobUpdateUrgentMessage,
    BusMessage,
)
from pipecat.pipeline.job_context import (
    JobError,
    JobGroup,
    JobGroupError,
    JobGroupParams,
    JobGroupResponse,
    JobParams,
    JobStatus,
)
from pipecat.pipeline.job_decorator import job as pipecat_job
from pipecat.registry import WorkerRegistry
from pipecat.registry.types import WorkerReadyData
from pipecat.utils.asyncio.task_manager import TaskManager
from pipecat.workers.base_worker import BaseWorker as PlainWorker
from pipecat.workers.runner import WorkerRunner

from pipecat_jobs import BaseWorker, JobsMixin, JobTimeoutError, job
from pipecat_jobs.testing import ChaosBus, JobHarness


class Bench:
    """Workers that are attached and set up but never run, as Pipecat's users test theirs."""

    def __init__(self) -> None:
        self.bus = ChaosBus()
        self.tasks = TaskManager(loop=asyncio.get_running_loop())
        self.registry = WorkerRegistry(runner_name="bench")
        self.runner = WorkerRunner(bus=self.bus, handle_sigint=False)
        self.workers: list[PlainWorker] = []

    async def add(self, *workers: PlainWorker) -> None:
        for worker in workers:
            await worker.attach(registry=self.registry, bus=self.bus, worker_runner=self.runner)
            await worker.setup(self.tasks)
            await self.ready(worker.name)
        self.workers += workers

    async def ready(self, *names: str) -> None:
        for name in names:
            await self.registry.register(WorkerReadyData(worker_name=name, runner="bench"))

    async def settle(self) -> None:
        """Let everything run that can."""
        for _ in range(50):
            await asyncio.sleep(0)

    def sent(self, kind: type[BusMessage]) -> list[Any]:
        return [message for message in self.bus.sent if isinstance(message, kind)]


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    await bench.bus.setup(bench.tasks)
    yield bench
    for worker in bench.workers:
        await worker.cleanup()
    await bench.bus.stop()


@pytest.fixture(params=[PlainWorker, BaseWorker], ids=["pipecat", "ours"])
def worker_class(request: pytest.FixtureRequest) -> type[PlainWorker]:
    return request.param


def listen(worker: PlainWorker, event: str) -> list[Any]:
    """Keep what an event handler gets."""
    got: list[Any] = []

    async def keep(_: PlainWorker, message: Any) -> None:
        got.append(message)

    worker.add_event_handler(event, keep)
    return got


def request(job_id: str = "j", name: str | None = None, **fields: Any) -> BusJobRequestMessage:
    return BusJobRequestMessage(
        source="asker", target="worker", job_id=job_id, job_name=name, **fields
    )


def answer(source: str, job_id: str, **fields: Any) -> BusJobResponseMessage:
    fields = {"status": JobStatus.COMPLETED, **fields}
    return BusJobResponseMessage(source=source, target="asker", job_id=job_id, **fields)


# -- asking --------------------------------------------------------------------------------------


async def test_each_worker_is_sent_one_request_with_name_and_payload(
    bench: Bench, worker_class: type
):
    asker = worker_class("asker")
    await bench.add(asker)
    await bench.ready("a", "b")

    job_id = await asker.request_job_group(
        "a", "b", params=JobGroupParams(name="look", payload={"q": 1})
    )

    assert [
        (m.source, m.target, m.job_id, m.job_name, m.payload)
        for m in bench.sent(BusJobRequestMessage)
    ] == [("asker", name, job_id, "look", {"q": 1}) for name in ("a", "b")]


async def test_a_request_without_name_and_payload_has_neither(bench: Bench, worker_class: type):
    asker = worker_class("asker")
    await bench.add(asker)
    await bench.ready("a")

    job_id = await asker.request_job("a")

    (sent,) = bench.sent(BusJobRequestMessage)
    assert (sent.job_id, sent.job_name, sent.payload) == (job_id, None, None)


async def test_a_job_that_is_asked_is_a_group_of_pipecats_until_it_ends(
    bench: Bench, worker_class: type
):
    asker = worker_class("asker")
    await bench.add(asker)
    await bench.ready("a", "b")

    params = JobGroupParams(label="Looking", cancellable=False, cancel_on_error=False)
    job_id = await asker.request_job_group("a", "b", params=params)

    group = asker.job_groups[job_id]
    assert isinstance(group, JobGroup)
    assert (group.job_id, group.worker_names) == (job_id, ["a", "b"])
    assert (group.label, group.cancellable, group.cancel_on_error) == ("Looking", False, False)
    assert not group.is_done
    await asker.cancel_job_group(job_id)
    assert group.is_done
    assert asker.job_groups == {}


async def test_a_job_without_timeout_has_no_timeout_task(bench: Bench, worker_class: type):
    asker = worker_class("asker")
    await bench.add(asker)
    await bench.ready("a")

    job_id = await asker.request_job("a")

    assert asker.job_groups[job_id].timeout_task is None


async def test_a_timeout_cancels_with_that_reason(bench: Bench, worker_class: type):
    asker = worker_class("asker")
    await bench.add(asker)
    await bench.ready("a")

    job_id = await asker.request_job("a", params=JobParams(timeout=0.05))
    cancelled = await bench.bus.wait_for(BusJobCancelMessage)

    assert (cancelled.target, cancelled.job_id, cancelled.reason) == ("a", job_id, "timeout")


async def test_an_answer_in_time_takes_the_timeout_back(bench: Bench, worker_class: type):
    asker = worker_class("asker")
    await bench.add(asker)
    await bench.ready("quick", "late")

    quick = await asker.request_job("quick", params=JobParams(timeout=0.05))
    await asyncio.sleep(0)  # Pipecat's own timeout task has to begin before it can be ended.
    await asker.on_bus_message(answer("quick", quick))
    late = await asker.request_job("late", params=JobParams(timeout=0.06))
    await bench.bus.wait_for(lambda m: isinstance(m, BusJobCancelMessage) and m.job_id == late)

    assert [m.job_id for m in bench.sent(BusJobCancelMessage)] == [late]


async def test_a_timeout_raises_and_says_so(bench: Bench, worker_class: type):
    asker = worker_class("asker")
    await bench.add(asker)
    await bench.ready("a")

    with pytest.raises(JobGroupError, match="timeout"):
        async with asker.job_group("a", params=JobGroupParams(timeout=0.02)):
            pass
    with pytest.raises(JobError, match="timeout"):
        async with asker.job("a", params=JobParams(timeout=0.02)):
            pass


async def test_a_worker_not_ready_in_time_raises_and_says_so(bench: Bench, worker_class: type):
    asker = worker_class("asker")
    await bench.add(asker)

    with pytest.raises(JobGroupError, match="not ready"):
        async with asker.job_group("nobody", params=JobGroupParams(timeout=0.02)):
            pass

    assert bench.sent(BusJobRequestMessage) == []


async def test_nobody_is_asked_before_everybody_is_ready(bench: Bench, worker_class: type):
    asker = worker_class("asker")
    await bench.add(asker)
    await bench.ready("early")
    asking = asyncio.create_task(asker.request_job_group("early", "late"))
    await bench.settle()
    assert bench.sent(BusJobRequestMessage) == []

    await bench.ready("late")
    await asking

    assert [m.target for m in bench.sent(BusJobRequestMessage)] == ["early", "late"]


# -- answers -------------------------------------------------------------------------------------


async def test_a_group_completes_with_its_last_answer(bench: Bench, worker_class: type):
    asker = worker_class("asker")
    completed = listen(asker, "on_job_completed")
    await bench.add(asker)
    await bench.ready("a", "b")
    job_id = await asker.request_job_group("a", "b")

    await asker.on_bus_message(answer("a", job_id, response={"x": 1}))
    await asyncio.sleep(0)
    assert completed == []
    await asker.on_bus_message(answer("b", job_id))
    await asyncio.sleep(0)

    assert completed == [JobGroupResponse(job_id=job_id, responses={"a": {"x": 1}, "b": {}})]
    assert asker.job_groups == {}


async def test_the_end_of_a_stream_is_an_answer(bench: Bench, worker_class: type):
    asker = worker_class("asker")
    completed = listen(asker, "on_job_completed")
    await bench.add(asker)
    await bench.ready("a", "b")
    job_id = await asker.request_job_group("a", "b")

    for name in ("a", "b"):
        end = BusJobStreamEndMessage(source=name, target="asker", job_id=job_id, data={"by": name})
        await asker.on_bus_message(end)
        await asyncio.sleep(0)

    assert [result.responses for result in completed] == [{"a": {"by": "a"}, "b": {"by": "b"}}]


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ("on_job_response", BusJobResponseMessage),
        ("on_job_response", BusJobResponseUrgentMessage),
        ("on_job_update", BusJobUpdateMessage),
        ("on_job_update", BusJobUpdateUrgentMessage),
        ("on_job_stream_start", BusJobStreamStartMessage),
        ("on_job_stream_data", BusJobStreamDataMessage),
        ("on_job_stream_end", BusJobStreamEndMessage),
    ],
)
async def test_an_event_fires_one_turn_after_its_message(
    bench: Bench, worker_class: type, event: str, message: type
):
    asker = worker_class("asker")
    got = listen(asker, event)
    await bench.add(asker)
    await bench.ready("a")
    job_id = await asker.request_job("a")
    fields = {"status": JobStatus.COMPLETED} if event == "on_job_response" else {}
    arrived = message(source="a", target="asker", job_id=job_id, **fields)

    await asker.on_bus_message(arrived)
    await asyncio.sleep(0)

    assert got == [arrived]


async def test_on_bus_message_fires_for_job_messages_as_well(bench: Bench, worker_class: type):
    worker = worker_class("worker")
    got = listen(worker, "on_bus_message")
    await bench.add(worker)
    arrived = request()

    await worker.on_bus_message(arrived)
    await asyncio.sleep(0)

    assert got == [arrived]


async def test_messages_for_another_worker_are_left_alone(bench: Bench, worker_class: type):
    worker = worker_class("another")
    got = listen(worker, "on_job_request")
    await bench.add(worker)

    await worker.on_bus_message(request())
    await asyncio.sleep(0)

    assert got == []
    assert worker.active_jobs == {}


@pytest.mark.parametrize("status", [JobStatus.ERROR, JobStatus.FAILED])
async def test_an_error_ends_the_group_and_keeps_what_was_answered(
    bench: Bench, worker_class: type, status: JobStatus
):
    asker = worker_class("asker")
    errors, completed = listen(asker, "on_job_error"), listen(asker, "on_job_completed")
    await bench.add(asker)
    await bench.ready("a", "b", "c")
    failed = answer("b", "", status=status, response={"why": "no"})

    with pytest.raises(JobGroupError):
        async with asker.job_group("a", "b", "c") as jg:
            failed.job_id = jg.job_id
            await asker.on_bus_message(answer("a", jg.job_id, response={"x": 1}))
            await asker.on_bus_message(failed)
    await asyncio.sleep(0)

    assert jg.responses == {"a": {"x": 1}, "b": {"why": "no"}}
    assert errors == [failed]
    assert completed == []
    (to_c,) = [m for m in bench.sent(BusJobCancelMessage) if m.target == "c"]
    assert to_c.reason == "worker 'b' errored"


async def test_an_error_ends_nothing_when_told_so(bench: Bench, worker_class: type):
    asker = worker_class("asker")
    errors, completed = listen(asker, "on_job_error"), listen(asker, "on_job_completed")
    await bench.add(asker)
    await bench.ready("a", "b")

    async with asker.job_group("a", "b", params=JobGroupParams(cancel_on_error=False)) as jg:
        failed = answer("a", jg.job_id, status=JobStatus.ERROR, response={"why": "no"})
        await asker.on_bus_message(failed)
        await asker.on_bus_message(answer("b", jg.job_id, response={"x": 1}))
    await asyncio.sleep(0)

    assert jg.responses == {"a": {"why": "no"}, "b": {"x": 1}}
    assert errors == []
    assert len(completed) == 1


async def test_every_answer_is_heard_before_the_completion(bench: Bench, worker_class: type):
    """Also when an override takes its time and the answers come at once."""
    order: list[str] = []

    class Listening(worker_class):
        async def on_job_response(self, message: BusJobResponseMessage) -> None:
            await asyncio.sleep(0)
            order.append(message.source)

        async def on_job_completed(self, result: JobGroupResponse) -> None:
            order.append("completed")

    asker = Listening("asker")
    await bench.add(asker)
    await bench.bus.start()
    await bench.ready("a", "b")

    async with asker.job_group("a", "b") as jg:
        await bench.bus.send(answer("a", jg.job_id))
        await bench.bus.send(answer("b", jg.job_id))
    await bench.settle()

    assert order == ["a", "b", "completed"]


async def test_overrides_hear_the_group_that_is_still_open(bench: Bench, worker_class: type):
    open_at: dict[str, bool] = {}

    class Listening(worker_class):
        async def on_job_response(self, message: BusJobResponseMessage) -> None:
            open_at["response"] = message.job_id in self.job_groups

        async def on_job_error(self, message: BusJobResponseMessage) -> None:
            open_at["error"] = message.job_id in self.job_groups

        async def on_job_completed(self, result: JobGroupResponse) -> None:
            open_at["completed"] = result.job_id in self.job_groups

    asker = Listening("asker")
    await bench.add(asker)
    await bench.ready("a")

    async with asker.job("a") as j:
        await asker.on_bus_message(answer("a", j.job_id))
    with pytest.raises(JobError):
        async with asker.job("a") as j:
            await asker.on_bus_message(answer("a", j.job_id, status=JobStatus.ERROR))

    assert open_at == {"response": True, "error": True, "completed": False}


async def test_a_completion_is_heard_before_the_caller_goes_on(bench: Bench, worker_class: type):
    order: list[str] = []

    class Listening(worker_class):
        async def on_job_completed(self, result: JobGroupResponse) -> None:
            await asyncio.sleep(0)
            order.append("completed")

    asker = Listening("asker")
    await bench.add(asker)
    await bench.ready("a")

    async with asker.job("a") as j:
        await asker.on_bus_message(answer("a", j.job_id))
    order.append("went on")

    assert order == ["completed", "went on"]


# -- calling off ---------------------------------------------------------------------------------


async def test_a_body_that_raises_cancels_with_that_reason(bench: Bench, worker_class: type):
    asker = worker_class("asker")
    await bench.add(asker)
    await bench.ready("a", "b")

    with pytest.raises(KeyError):
        async with asker.job_group("a", "b") as jg:
            raise KeyError

    assert [(m.target, m.job_id, m.reason) for m in bench.sent(BusJobCancelMessage)] == [
        (name, jg.job_id, "context exited with error") for name in ("a", "b")
    ]


async def test_a_cancel_by_hand_carries_its_reason_to_workers_and_caller(
    bench: Bench, worker_class: type
):
    asker = worker_class("asker")
    await bench.add(asker)
    await bench.ready("a", "b")

    with pytest.raises(JobGroupError, match="no longer needed"):
        async with asker.job_group("a", "b") as jg:
            await asker.cancel_job_group(jg.job_id, reason="no longer needed")

    assert [(m.target, m.reason) for m in bench.sent(BusJobCancelMessage)] == [
        ("a", "no longer needed"),
        ("b", "no longer needed"),
    ]


async def test_a_cancel_goes_once_to_each_worker_that_owes_an_answer(bench: Bench):
    """Pipecat tells those as well that have answered."""
    asker = BaseWorker("asker")
    await bench.add(asker)
    await bench.ready("a", "b", "c")
    job_id = await asker.request_job_group("a", "b", "c")
    await asker.on_bus_message(answer("b", job_id))

    await asker.cancel_job_group(job_id)
    await asker.cancel_job_group(job_id)

    assert [m.target for m in bench.sent(BusJobCancelMessage)] == ["a", "c"]


async def test_a_cancel_of_an_unknown_group_does_nothing(bench: Bench, worker_class: type):
    asker = worker_class("asker")
    await bench.add(asker)

    await asker.cancel_job_group("unknown", reason="why not")

    assert bench.bus.sent == []


@pytest.mark.parametrize("cancellable", [True, False])
async def test_a_cancel_requested_from_outside_respects_cancellable(
    bench: Bench, worker_class: type, cancellable: bool
):
    asker = worker_class("asker")
    await bench.add(asker)
    await bench.ready("a")
    job_id = await asker.request_job("a", params=JobParams(cancellable=cancellable))

    assert await asker.request_cancel_job_group(job_id, reason="user") is cancellable
    assert (job_id in asker.job_groups) is not cancellable
    assert await asker.request_cancel_job_group("unknown") is False


async def test_the_cancelled_answer_to_a_cancel_is_heard(bench: Bench, worker_class: type):
    asker = worker_class("asker")
    got = listen(asker, "on_job_response")
    await bench.add(asker)
    await bench.ready("a")
    job_id = await asker.request_job("a")
    await asker.cancel_job_group(job_id)
    cancelled = answer("a", job_id, status=JobStatus.CANCELLED)

    await asker.on_bus_message(cancelled)
    await asyncio.sleep(0)

    assert got == [cancelled]


# -- being asked ---------------------------------------------------------------------------------


async def test_a_request_fires_its_event_and_is_an_active_job(bench: Bench, worker_class: type):
    worker = worker_class("worker")
    got = listen(worker, "on_job_request")
    await bench.add(worker)
    arrived = request(payload={"q": 1})

    await worker.on_bus_message(arrived)
    await asyncio.sleep(0)

    assert got == [arrived]
    assert worker.active_jobs == {"j": arrived}


async def test_an_event_handler_may_answer_right_away(bench: Bench, worker_class: type):
    worker = worker_class("worker")

    @worker.event_handler("on_job_request")
    async def respond(worker: PlainWorker, message: BusJobRequestMessage) -> None:
        await worker.send_job_response(message.job_id, {"by": "event"})

    await bench.add(worker)
    await worker.on_bus_message(request(name="anything"))
    sent = await bench.bus.wait_for(BusJobResponseMessage)

    assert (sent.target, sent.job_id, sent.response) == ("asker", "j", {"by": "event"})


async def test_a_request_nobody_handles_stays_open_for_a_later_answer(
    bench: Bench, worker_class: type
):
    worker = worker_class("worker")
    await bench.add(worker)
    await worker.on_bus_message(request())
    await bench.settle()
    assert bench.bus.sent == []

    await worker.send_job_response("j", {"late": True})

    (sent,) = bench.sent(BusJobResponseMessage)
    assert (sent.status, sent.response) == (JobStatus.COMPLETED, {"late": True})
    assert worker.active_jobs == {}


async def test_a_request_nobody_handles_stays_open_until_its_deadline(job_harness: JobHarness):
    asker, worker = BaseWorker("asker"), BaseWorker("worker")
    await job_harness.start(asker, worker)

    with pytest.raises(JobTimeoutError):
        async with asker.job("worker", timeout=0.05) as j:
            await job_harness.settle()
            assert list(worker.active_jobs) == [j.job_id]


async def test_a_request_nobody_handles_ends_with_a_cancel(bench: Bench, worker_class: type):
    worker = worker_class("worker")
    cancelled = listen(worker, "on_job_cancelled")
    await bench.add(worker)
    await worker.on_bus_message(request())
    cancel = BusJobCancelMessage(source="asker", target="worker", job_id="j", reason="enough")

    await worker.on_bus_message(cancel)
    sent = await bench.bus.wait_for(BusJobResponseMessage)
    await asyncio.sleep(0)

    assert (sent.target, sent.status) == ("asker", JobStatus.CANCELLED)
    assert cancelled == [cancel]
    assert worker.active_jobs == {}


async def test_a_cancelled_handler_has_stopped_before_its_hook_runs(
    bench: Bench, worker_class: type
):
    order: list[str] = []
    started = asyncio.Event()

    class Working(worker_class):
        async def on_job_request(self, message: BusJobRequestMessage) -> None:
            started.set()
            try:
                await asyncio.Event().wait()
            finally:
                order.append("handler stopped")

        async def on_job_cancelled(self, message: BusJobCancelMessage) -> None:
            assert message.job_id in self.active_jobs
            order.append("hook")

    worker = Working("worker")
    await bench.add(worker)
    await worker.on_bus_message(request())
    await started.wait()

    cancel = BusJobCancelMessage(source="asker", target="worker", job_id="j")
    await worker.on_bus_message(cancel)
    await bench.bus.wait_for(BusJobResponseMessage)

    assert order == ["handler stopped", "hook"]


async def test_the_wish_for_an_update_fires_for_an_open_job_alone(bench: Bench, worker_class: type):
    worker = worker_class("worker")
    got = listen(worker, "on_job_update_requested")
    await bench.add(worker)
    await worker.on_bus_message(request())
    wishes = [
        BusJobUpdateRequestMessage(source="asker", target="worker", job_id=job_id)
        for job_id in ("j", "other")
    ]

    for wish in wishes:
        await worker.on_bus_message(wish)
    await asyncio.sleep(0)

    assert got == wishes[:1]


@pytest.mark.parametrize(
    ("method", "message", "field"),
    [
        ("send_job_update", BusJobUpdateMessage, "update"),
        ("send_job_stream_start", BusJobStreamStartMessage, "data"),
        ("send_job_stream_data", BusJobStreamDataMessage, "data"),
        ("send_job_stream_end", BusJobStreamEndMessage, "data"),
        ("send_job_response", BusJobResponseMessage, "response"),
    ],
)
async def test_what_is_sent_for_a_job_goes_to_its_requester(
    bench: Bench, worker_class: type, method: str, message: type, field: str
):
    worker = worker_class("worker")
    await bench.add(worker)
    await worker.on_bus_message(request())

    await getattr(worker, method)("j", {"x": 1})

    (sent,) = bench.bus.sent
    assert type(sent) is message
    assert (sent.source, sent.target, sent.job_id) == ("worker", "asker", "j")
    assert getattr(sent, field) == {"x": 1}


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("send_job_update", BusJobUpdateUrgentMessage),
        ("send_job_response", BusJobResponseUrgentMessage),
    ],
)
async def test_what_is_urgent_is_sent_as_urgent(
    bench: Bench, worker_class: type, method: str, message: type
):
    worker = worker_class("worker")
    await bench.add(worker)
    await worker.on_bus_message(request())

    await getattr(worker, method)("j", {"x": 1}, urgent=True)

    assert [type(sent) for sent in bench.bus.sent] == [message]


@pytest.mark.parametrize(
    "method",
    [
        "send_job_response",
        "send_job_update",
        "send_job_stream_start",
        "send_job_stream_data",
        "send_job_stream_end",
    ],
)
@pytest.mark.parametrize("when", ["never asked", "answered"])
async def test_sending_for_a_job_that_is_not_open_is_a_runtime_error(
    bench: Bench, worker_class: type, method: str, when: str
):
    worker = worker_class("worker")
    await bench.add(worker)
    if when == "answered":
        await worker.on_bus_message(request())
        await worker.send_job_response("j")

    with pytest.raises(RuntimeError, match="'j'"):
        await getattr(worker, method)("j")


# -- handlers ------------------------------------------------------------------------------------


class Gated:
    """Runs until its job's gate is opened, and keeps count."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.running: list[str] = []
        self.began: asyncio.Queue[str] = asyncio.Queue()
        self.gates = {job_id: asyncio.Event() for job_id in ("1", "2", "3")}

    async def work(self, message: BusJobRequestMessage) -> None:
        self.running.append(message.job_id)
        self.began.put_nowait(message.job_id)
        await self.gates[message.job_id].wait()
        self.running.remove(message.job_id)


MARKS = pytest.mark.parametrize("mark", [pipecat_job, job], ids=["pipecats-mark", "our-mark"])


@MARKS
async def test_sequential_jobs_run_one_by_one_in_order(bench: Bench, worker_class: type, mark: Any):
    class Sequential(Gated, worker_class):
        @mark(name="work", sequential=True)
        async def handle(self, message: BusJobRequestMessage) -> None:
            await self.work(message)

    worker = Sequential("worker")
    await bench.add(worker)
    for job_id in worker.gates:
        await worker.on_bus_message(request(job_id, "work"))

    for job_id in ("1", "2", "3"):
        assert await worker.began.get() == job_id
        assert worker.running == [job_id]
        assert worker.began.empty()
        worker.gates[job_id].set()


@MARKS
async def test_a_sequential_handler_makes_room_when_it_returns_answered_or_not(
    bench: Bench, worker_class: type, mark: Any
):
    class Sequential(Gated, worker_class):
        @mark(name="work", sequential=True)
        async def handle(self, message: BusJobRequestMessage) -> None:
            await self.work(message)

    worker = Sequential("worker")
    await bench.add(worker)
    for job_id in ("1", "2"):
        await worker.on_bus_message(request(job_id, "work"))
    assert await worker.began.get() == "1"
    await worker.send_job_response("1")
    await bench.settle()
    assert worker.began.empty()

    worker.gates["1"].set()

    assert await worker.began.get() == "2"
    worker.gates["2"].set()
    await bench.settle()
    assert list(worker.active_jobs) == ["2"]


@MARKS
async def test_a_sequential_job_holds_up_no_job_of_another_name(
    bench: Bench, worker_class: type, mark: Any
):
    class Sequential(Gated, worker_class):
        @mark(name="a", sequential=True)
        async def handle_a(self, message: BusJobRequestMessage) -> None:
            await self.work(message)

        @mark(name="b", sequential=True)
        async def handle_b(self, message: BusJobRequestMessage) -> None:
            await self.work(message)

    worker = Sequential("worker")
    await bench.add(worker)
    await worker.on_bus_message(request("1", "a"))
    await worker.on_bus_message(request("2", "b"))

    assert [await worker.began.get(), await worker.began.get()] == ["1", "2"]
    assert worker.running == ["1", "2"]


@MARKS
async def test_jobs_of_one_name_run_at_the_same_time(bench: Bench, worker_class: type, mark: Any):
    class Concurrent(Gated, worker_class):
        @mark(name="work")
        async def handle(self, message: BusJobRequestMessage) -> None:
            await self.work(message)

    worker = Concurrent("worker")
    await bench.add(worker)
    for job_id in worker.gates:
        await worker.on_bus_message(request(job_id, "work"))

    assert [await worker.began.get() for _ in range(3)] == ["1", "2", "3"]
    assert worker.running == ["1", "2", "3"]


@MARKS
async def test_a_sequential_job_that_is_cancelled_while_it_waits_never_runs(
    bench: Bench, worker_class: type, mark: Any
):
    class Sequential(Gated, worker_class):
        @mark(name="work", sequential=True)
        async def handle(self, message: BusJobRequestMessage) -> None:
            await self.work(message)

    worker = Sequential("worker")
    await bench.add(worker)
    for job_id in worker.gates:
        await worker.on_bus_message(request(job_id, "work"))
    assert await worker.began.get() == "1"

    cancel = BusJobCancelMessage(source="asker", target="worker", job_id="2")
    await worker.on_bus_message(cancel)
    await bench.bus.wait_for(BusJobResponseMessage)
    worker.gates["1"].set()

    assert await worker.began.get() == "3"


@MARKS
async def test_either_decorator_marks_handlers_for_either_worker(
    job_harness: JobHarness, worker_class: type, mark: Any
):
    class Marked(worker_class):
        @mark(name="echo")
        async def echo(self, message: BusJobRequestMessage) -> None:
            await self.send_job_response(message.job_id, message.payload)

    asker = BaseWorker("asker")
    await job_harness.start(asker, Marked("worker"))

    async with asker.job("worker", name="echo", payload={"q": 1}) as j:
        pass

    assert j.response == {"q": 1}


async def test_a_handler_is_found_where_a_name_matches_and_on_job_request_elsewhere(
    bench: Bench, worker_class: type
):
    class Both(worker_class):
        @pipecat_job(name="known")
        async def known(self, message: BusJobRequestMessage) -> None:
            await self.send_job_response(message.job_id, {"by": "handler"})

        async def on_job_request(self, message: BusJobRequestMessage) -> None:
            await self.send_job_response(message.job_id, {"by": "on_job_request"})

    worker = Both("worker")
    await bench.add(worker)
    for job_id, name in (("1", "known"), ("2", "unknown"), ("3", None)):
        await worker.on_bus_message(request(job_id, name))
    sent = await bench.bus.wait_for(BusJobResponseMessage, 3)

    assert {m.job_id: m.response["by"] for m in sent} == {
        "1": "handler",
        "2": "on_job_request",
        "3": "on_job_request",
    }


async def test_a_subclass_replaces_the_handler_it_overrides(bench: Bench, worker_class: type):
    class Base(worker_class):
        @pipecat_job(name="who")
        async def who(self, message: BusJobRequestMessage) -> None:
            await self.send_job_response(message.job_id, {"by": "base"})

    class Derived(Base):
        @pipecat_job(name="who")
        async def who(self, message: BusJobRequestMessage) -> None:
            await self.send_job_response(message.job_id, {"by": "derived"})

    worker = Derived("worker")
    await bench.add(worker)
    await worker.on_bus_message(request(name="who"))

    assert (await bench.bus.wait_for(BusJobResponseMessage)).response == {"by": "derived"}


async def test_a_plain_worker_class_with_the_mixin_keeps_its_handlers(bench: Bench):
    class Plain(PlainWorker):
        @pipecat_job(name="who")
        async def who(self, message: BusJobRequestMessage) -> None:
            await self.send_job_response(message.job_id, {"by": self.name})

    class Mixed(JobsMixin, Plain):
        pass

    worker = Mixed("worker")
    await bench.add(worker)
    await worker.on_bus_message(request(name="who"))

    assert (await bench.bus.wait_for(BusJobResponseMessage)).response == {"by": "worker"}


# -- the end of a worker -------------------------------------------------------------------------


async def test_a_worker_that_stops_answers_for_its_jobs_and_cancels_its_groups(
    bench: Bench, worker_class: type
):
    worker = worker_class("worker")
    await bench.add(worker)
    await bench.ready("a")
    await worker.on_bus_message(request())
    asked = await worker.request_job("a")
    group = worker.job_groups[asked]

    await worker.stop()

    (cancelled,) = bench.sent(BusJobCancelMessage)
    assert (cancelled.target, cancelled.job_id) == ("a", asked)
    assert "stopped" in cancelled.reason
    (answered,) = bench.sent(BusJobResponseMessage)
    assert (answered.target, answered.status) == ("asker", JobStatus.CANCELLED)
    assert group.is_done
    assert worker.active_jobs == worker.job_groups == {}


async def test_a_job_between_workers_that_are_not_run_is_answered(bench: Bench, worker_class: type):
    class Echo(worker_class):
        @pipecat_job(name="echo")
        async def echo(self, message: BusJobRequestMessage) -> None:
            await self.send_job_response(message.job_id, message.payload)

    asker = worker_class("asker")
    await bench.add(asker, Echo("worker"))
    await bench.bus.start()

    async with asker.job("worker", params=JobParams(name="echo", payload={"q": 1})) as j:
        pass

    assert j.response == {"q": 1}
    assert asker.job_groups == {}
