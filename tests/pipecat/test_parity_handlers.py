"""How handlers are found and run, one by one or at once, the same in Pipecat's workers and ours."""

import asyncio
from typing import Any

import pytest
from pipecat.bus.messages import BusJobCancelMessage, BusJobRequestMessage, BusJobResponseMessage
from pipecat.pipeline.job_decorator import job as pipecat_job
from pipecat.workers.base_worker import BaseWorker as PlainWorker
from support import parity
from support.parity import Bench, request

from pipecat_jobs import BaseWorker, JobsMixin, job
from pipecat_jobs.testing import JobHarness

pytestmark = pytest.mark.every_bus

bench = parity.bench
worker_class = parity.worker_class


class Gated:
    """Its handler runs until the gate of its job is opened, and counts the running ones."""

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
async def test_a_sequential_handler_frees_its_slot_when_it_returns_with_or_without_a_response(
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
async def test_a_sequential_job_does_not_delay_a_job_of_another_name(
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

    cancel = BusJobCancelMessage(source="requester", target="worker", job_id="2")
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

    requester = BaseWorker("requester")
    await job_harness.start(requester, Marked("worker"))

    async with requester.job("worker", name="echo", payload={"q": 1}) as j:
        pass

    assert j.response == {"q": 1}


async def test_a_handler_takes_jobs_of_its_name_and_on_job_request_takes_the_others(
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

    class Mixed(Plain, JobsMixin):
        pass

    worker = Mixed("worker")
    await bench.add(worker)
    await worker.on_bus_message(request(name="who"))

    assert (await bench.bus.wait_for(BusJobResponseMessage)).response == {"by": "worker"}
