import asyncio
import socket
from collections.abc import Iterator
from typing import NoReturn
from urllib.parse import urlsplit

import pytest
from loguru import logger
from pipecat.bus import (
    AsyncQueueBus,
    BusEndWorkerMessage,
    BusJobCancelMessage,
    BusJobRequestMessage,
    BusJobResponseMessage,
    BusMessage,
)
from pipecat.pipeline.job_context import JobGroupParams, JobParams
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.filters.identity_filter import IdentityFilter
from pipecat.registry.types import WorkerReadyData
from pipecat.workers.base_worker import BaseWorker, WorkerParams

from pipecat_jobs.testing.chaos_bus import ChaosBus
from pipecat_jobs.testing.fixtures import LogRecord
from pipecat_jobs.testing.harness import JobHarness, LeftBehindError
from pipecat_jobs.testing.llm_server import ScriptedLLMServer
from pipecat_jobs.testing.virtual_time import run_virtual

pytest_plugins = ["pipecat_jobs.testing.fixtures"]


class Echo(BaseWorker):
    async def on_job_request(self, message: BusJobRequestMessage) -> None:
        await self.send_job_response(message.job_id, message.payload)


class Stuck(BaseWorker):
    """Takes jobs and never responds."""

    def __init__(self, name: str):
        super().__init__(name)
        self.entered = asyncio.Event()

    async def on_job_request(self, message: BusJobRequestMessage) -> None:
        self.entered.set()
        await asyncio.Event().wait()


class NeverReady(BaseWorker):
    async def start(self) -> None:
        await asyncio.Event().wait()


class Unstoppable(BaseWorker):
    async def run(self, params: WorkerParams) -> None:
        await self.setup(params.task_manager)
        await self.start()
        await asyncio.Event().wait()

    async def stop(self) -> None:
        pass


def request(target: str, job_id: str = "1") -> BusJobRequestMessage:
    return BusJobRequestMessage(source="test", target=target, job_id=job_id, payload={"n": 1})


async def test_started_workers_are_ready_and_do_jobs():
    requester, echo = BaseWorker("requester"), Echo("echo")
    async with JobHarness(check_watches=False) as harness:
        await harness.start(requester, echo)
        assert {"requester", "echo"} <= set(harness.registry.local_workers)
        async with requester.job("echo", params=JobParams(payload={"say": "hi"})) as job:
            pass
        assert job.response == {"say": "hi"}


async def test_workers_run_on_the_given_bus_and_name():
    bus = AsyncQueueBus()
    async with JobHarness(bus, name="box") as harness:
        worker = BaseWorker("worker")
        await harness.start(worker)
        assert harness.bus is harness.runner.bus is worker.bus is bus
        assert harness.runner.name == harness.registry.runner_name == "box"


async def test_more_workers_can_be_started_later():
    async with JobHarness() as harness:
        await harness.start(BaseWorker("first"))
        await harness.start(BaseWorker("second"))
        assert set(harness.registry.local_workers) == {"first", "second"}


async def test_a_name_can_be_started_only_once():
    async with JobHarness() as harness:
        await harness.start(BaseWorker("worker"))
        with pytest.raises(ValueError, match="already started"):
            await harness.start(BaseWorker("worker"))


async def test_the_runner_does_not_exist_before_entering():
    with pytest.raises(RuntimeError, match="once it is entered"):
        _ = JobHarness().runner


def test_a_worker_that_never_gets_ready_is_named():
    async def main() -> None:
        async with JobHarness(timeout=60) as harness:
            await harness.start(NeverReady("slow"))

    with pytest.raises(TimeoutError, match="'slow' was not ready after 60 s"):
        run_virtual(main())


async def test_a_bus_that_cannot_start_fails_the_entry():
    class BrokenBus(AsyncQueueBus):
        async def start(self) -> NoReturn:
            raise ConnectionError("no network")

    with pytest.raises(ConnectionError, match="no network"):
        async with JobHarness(BrokenBus()):
            pass


async def test_a_cancelled_entry_leaves_no_runner():
    entered = asyncio.Event()

    class SlowBus(AsyncQueueBus):
        async def start(self) -> None:
            entered.set()
            await asyncio.Event().wait()

    tasks = asyncio.all_tasks()
    entering = asyncio.create_task(JobHarness(SlowBus()).__aenter__())
    await entered.wait()
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering
    assert asyncio.all_tasks() == tasks


async def test_pipeline_workers_are_also_run_and_ended():
    async with JobHarness() as harness:
        worker = PipelineWorker(Pipeline([IdentityFilter()]), name="bot")
        await harness.start(worker)
        assert worker.started_at is not None
        await harness.end(worker)


@pytest.mark.parametrize("how", ["end", "cancel"])
async def test_finishing_one_worker_does_not_end_the_others(how: str):
    first, second = BaseWorker("first"), Echo("second")
    bus = ChaosBus()
    async with JobHarness(bus) as harness:
        await harness.start(first, second)
        await (harness.end(first) if how == "end" else harness.cancel(first))
        await first.wait()
        await bus.send(request("second"))
        await bus.wait_for(BusJobResponseMessage)


def test_a_worker_that_does_not_end_is_named():
    async def main() -> None:
        bus = ChaosBus()
        async with JobHarness(bus) as harness:
            worker = BaseWorker("deaf")
            await harness.start(worker)
            bus.drop(BusEndWorkerMessage)
            with pytest.raises(TimeoutError, match="'deaf' had not finished after 5 s"):
                await harness.end(worker)

    run_virtual(main())


async def test_settle_waits_for_every_message_that_follows_from_a_message():
    class Relay(BaseWorker):
        async def on_job_request(self, message: BusJobRequestMessage) -> None:
            assert message.payload is not None
            left = message.payload["left"]
            for _ in range(20):
                await asyncio.sleep(0)
            if left:
                next_request = request("relay", f"{left}")
                next_request.payload = {"left": left - 1}
                await self.bus.send(next_request)
            await self.send_job_response(message.job_id)

    bus = ChaosBus()
    async with JobHarness(bus) as harness:
        await harness.start(Relay("relay"))
        first = request("relay", "first")
        first.payload = {"left": 10}
        await bus.send(first)
        await harness.settle()
        assert len([each for each in bus.sent if isinstance(each, BusJobResponseMessage)]) == 11


async def test_settle_raises_for_workers_that_never_stop_sending():
    class Restless(BaseWorker):
        async def on_job_request(self, message: BusJobRequestMessage) -> None:
            if not enough.is_set():
                other = "other" if self.name == "one" else "one"
                await self.bus.send(request(other, message.job_id))
            await self.send_job_response(message.job_id)

    enough = asyncio.Event()
    async with JobHarness() as harness:
        await harness.start(Restless("one"), Restless("other"))
        await harness.bus.send(request("one"))
        with pytest.raises(RuntimeError, match="still busy"):
            await harness.settle()
        enough.set()
        await harness.settle()


async def test_settle_does_not_wait_for_held_messages():
    bus = ChaosBus()
    async with JobHarness(bus) as harness:
        await harness.start(Echo("echo"))
        held = bus.hold(BusJobResponseMessage)
        await bus.send(request("echo"))
        await harness.settle()
        assert len(held.messages) == 1


async def test_a_job_without_a_response_is_left_behind_until_it_is_cancelled():
    async with JobHarness() as harness:
        stuck = Stuck("stuck")
        await harness.start(stuck)
        assert harness.left_behind() == []
        await harness.bus.send(request("stuck", "abc"))
        await stuck.entered.wait()
        assert harness.left_behind() == [
            "worker 'stuck': active job abc",
            "task 'stuck::stuck::job_default'",
        ]
        await harness.bus.send(BusJobCancelMessage(source="test", target="stuck", job_id="abc"))
        await harness.settle()
        assert harness.left_behind() == []


async def test_a_forgotten_job_fails_the_test():
    async def run() -> None:
        stuck = Stuck("stuck")
        async with JobHarness() as harness:
            await harness.start(stuck)
            await harness.bus.send(request("stuck", "abc"))
            await stuck.entered.wait()

    with pytest.raises(LeftBehindError, match="worker 'stuck': active job abc") as caught:
        await run()
    assert "worker 'stuck': active job abc" in caught.value.things
    assert isinstance(caught.value, AssertionError)


async def test_a_job_group_and_its_timeout_are_left_behind_until_the_group_ends():
    async with JobHarness(check_watches=False) as harness:
        requester, stuck = BaseWorker("requester"), Stuck("stuck")
        await harness.start(requester, stuck)
        params = JobGroupParams(timeout=3600)
        job_id = await requester.request_job_group("stuck", params=params)
        await stuck.entered.wait()
        left = harness.left_behind()
        assert f"worker 'requester': job group {job_id}" in left
        assert f"task 'requester::task_timeout_{job_id[:8]}'" in left
        await requester.cancel_job_group(job_id)
        await harness.settle()
        assert harness.left_behind() == []


async def test_a_job_of_a_child_worker_also_counts():
    async with JobHarness() as harness:
        parent, child = BaseWorker("parent"), Stuck("child")
        await harness.start(parent)
        await parent.add_workers(child)
        await harness.settle()
        await harness.bus.send(request("child", "abc"))
        await child.entered.wait()
        assert "worker 'child': active job abc" in harness.left_behind()
        await harness.bus.send(BusJobCancelMessage(source="test", target="child", job_id="abc"))
        await harness.settle()
        assert harness.left_behind() == []


async def test_a_watch_made_for_one_call_is_left_behind():
    async def ask(harness: JobHarness) -> None:
        async with harness:
            await harness.start(requester := BaseWorker("requester"), Echo("echo"))
            async with requester.job("echo"):
                pass

    await ask(JobHarness(check_watches=False))
    with pytest.raises(LeftBehindError, match="registry watch for 'echo'"):
        await ask(JobHarness())


async def test_watches_of_workers_are_not_left_behind():
    class Watcher(BaseWorker):
        async def on_worker_ready(self, data: WorkerReadyData) -> None:
            seen.set()

    seen = asyncio.Event()
    async with JobHarness() as harness:
        watcher = Watcher("watcher")
        await harness.start(watcher)
        await watcher.watch_workers("late")
        await harness.start(BaseWorker("late"))
        await seen.wait()


async def test_a_task_still_alive_after_teardown_fails_the_test():
    async def sleep_on() -> None:
        await asyncio.Event().wait()

    strayed: asyncio.Task[None] | None = None
    with pytest.raises(LeftBehindError, match="task 'astray' is still alive"):
        async with JobHarness():
            strayed = asyncio.create_task(sleep_on(), name="astray")
    assert strayed is not None
    assert not strayed.done()
    strayed.cancel()
    await asyncio.wait({strayed})


async def test_a_task_of_a_worker_that_outlives_it_is_reported_and_cancelled():
    async def sleep_on() -> None:
        await asyncio.Event().wait()

    tasks, worker = asyncio.all_tasks(), BaseWorker("worker")

    async def run() -> None:
        async with JobHarness() as harness:
            await harness.start(worker)
            worker.create_task(sleep_on(), "astray")

    with pytest.raises(LeftBehindError, match="task 'worker::astray' is still alive"):
        await run()
    assert asyncio.all_tasks() == tasks


async def test_tasks_from_before_the_harness_are_ignored():
    gate = asyncio.Event()
    earlier = asyncio.create_task(gate.wait())
    async with JobHarness() as harness:
        await harness.start(BaseWorker("worker"))
    assert not earlier.done()
    gate.set()
    await earlier


async def test_leftovers_of_a_test_do_not_hide_its_error():
    stuck, tasks = Stuck("stuck"), asyncio.all_tasks()

    async def run() -> None:
        async with JobHarness() as harness:
            await harness.start(stuck)
            await harness.bus.send(request("stuck"))
            await stuck.entered.wait()
            raise LookupError("the test's own")

    with pytest.raises(LookupError, match="the test's own"):
        await run()
    assert asyncio.all_tasks() == tasks


async def test_a_cancelled_test_still_stops_its_workers():
    entered = asyncio.Event()

    async def run() -> None:
        async with JobHarness() as harness:
            await harness.start(BaseWorker("worker"))
            entered.set()
            await asyncio.Event().wait()

    tasks = asyncio.all_tasks()
    running = asyncio.create_task(run())
    await entered.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert asyncio.all_tasks() == tasks


async def test_a_publish_blocked_for_ever_does_not_hang_the_teardown():
    bus = ChaosBus()
    stuck = Stuck("stuck")

    async def run() -> None:
        async with JobHarness(bus) as harness:
            await harness.start(stuck)
            await bus.send(request("stuck"))
            await stuck.entered.wait()
            block = bus.block_publish(BusMessage)
            ending = asyncio.create_task(harness.cancel(stuck))
            await block.wait()
            ending.cancel()
            raise LookupError("failed meanwhile")

    async with asyncio.timeout(5):
        with pytest.raises(LookupError, match="failed meanwhile"):
            await run()


def test_a_runner_that_does_not_stop_is_reported():
    async def main() -> None:
        with pytest.raises(LeftBehindError, match="runner 'box' had not stopped after 5 s"):
            async with JobHarness(name="box") as harness:
                await harness.start(Unstoppable("rock"))

    run_virtual(main())


async def test_a_session_ended_by_a_worker_is_still_torn_down():
    async with JobHarness() as harness:
        worker = BaseWorker("worker")
        await harness.start(worker)
        await worker.end()
        await worker.wait()


def test_a_worker_times_out_in_virtual_time():
    async def main() -> float:
        async with JobHarness(check_watches=False) as harness:
            requester, stuck = BaseWorker("requester"), Stuck("stuck")
            await harness.start(requester, stuck)
            began = asyncio.get_running_loop().time()
            with pytest.raises(Exception, match="timeout"):
                async with requester.job("stuck", params=JobParams(timeout=30)):
                    pass
            return asyncio.get_running_loop().time() - began

    assert run_virtual(main()) == 30.0


async def test_the_fixture_runs_workers(job_harness: JobHarness):
    await job_harness.start(Echo("echo"))
    await job_harness.bus.send(request("echo"))
    await job_harness.settle()


async def test_the_chaos_fixtures_share_one_bus(chaos_bus: ChaosBus, chaos_harness: JobHarness):
    assert chaos_harness.bus is chaos_bus
    chaos_bus.duplicate(BusJobRequestMessage)
    await chaos_harness.start(BaseWorker("idle"))
    await chaos_harness.bus.send(request("idle"))
    assert chaos_bus.delivered[-1] is not chaos_bus.delivered[-2]
    assert chaos_bus.delivered[-1] == chaos_bus.delivered[-2]
    await chaos_harness.settle()
    await chaos_harness.bus.send(BusJobCancelMessage(source="test", target="idle", job_id="1"))


async def test_the_log_fixture_captures_log_messages(job_log: list[LogRecord]):
    error = LookupError("lost")
    logger.opt(exception=error).warning("look: {}", 1)
    logger.trace("closer")
    first, second = job_log
    assert (first.level, first.message, first.exception) == ("WARNING", "look: 1", error)
    assert (second.level, second.message, second.exception) == ("TRACE", "closer", None)
    assert first.module == __name__


@pytest.fixture
def late_socket() -> Iterator[socket.socket]:
    """A socket that is closed only after the tear-down of everything set up after it."""
    with socket.socket() as late:
        late.setblocking(False)
        yield late


async def test_a_server_named_before_the_harness_still_stops_before_it(
    late_socket: socket.socket, scripted_llm: ScriptedLLMServer, job_harness: JobHarness
):
    loop, tasks = asyncio.get_running_loop(), asyncio.all_tasks()
    url = urlsplit(scripted_llm.base_url)
    await loop.sock_connect(late_socket, (url.hostname, url.port))
    await loop.sock_sendall(late_socket, b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
    assert await loop.sock_recv(late_socket, 1)
    assert asyncio.all_tasks() > tasks, "the server has no task for the open connection"
