"""One deadline for readiness, queueing and work, exact because the clock is virtual."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest
from pipecat.bus import AsyncQueueBus, WorkerBus
from pipecat.bus.messages import BusJobRequestMessage
from support.workers import Requester, Responder, until

from pipecat_jobs import (
    CancelReason,
    JobGroupError,
    JobTimeoutError,
    OutcomeStatus,
    RoutedBus,
    WorkerNotReadyError,
    job,
)
from pipecat_jobs.testing import JobHarness, run_virtual

pytestmark = pytest.mark.every_bus

InVirtualTime = Callable[[Callable[[JobHarness], Awaitable[None]]], None]


@pytest.fixture
def in_virtual_time(new_local_bus: Callable[[], WorkerBus]) -> InVirtualTime:
    def run(test: Callable[[JobHarness], Awaitable[None]]) -> None:
        async def main() -> None:
            async with JobHarness(new_local_bus()) as harness:
                await test(harness)

        run_virtual(main())

    return run


def test_timeout_ends_the_job_exactly_then_and_stops_the_handler(
    in_virtual_time: InVirtualTime,
):
    async def test(harness: JobHarness) -> None:
        requester, responder = Requester(), Responder()
        await harness.start(requester, responder)
        start = asyncio.get_running_loop().time()
        with pytest.raises(JobTimeoutError, match=r"'responder' within 30 s") as caught:
            await requester.ask("responder", "wait", timeout=30)
        assert asyncio.get_running_loop().time() - start == pytest.approx(30)
        await harness.settle()
        assert len(responder.cancelled) == 1
        assert responder.hook_calls[0].reason == "timeout"
        outcome = caught.value.outcomes["responder"]
        assert (outcome.status, outcome.reason) == (OutcomeStatus.TIMED_OUT, "timeout")
        assert isinstance(caught.value, TimeoutError)

    in_virtual_time(test)


def test_time_in_the_queue_of_a_worker_counts_against_the_timeout(in_virtual_time: InVirtualTime):
    async def test(harness: JobHarness) -> None:
        class Single(Responder):
            job_request_concurrency = 1

            async def on_job_request(self, message) -> None:
                await asyncio.sleep(6)
                await self.send_job_response(message.job_id, {})

        requester, single = Requester(), Single("single")
        await harness.start(requester, single)
        start = asyncio.get_running_loop().time()
        first = asyncio.create_task(requester.ask("single", timeout=10))
        second = asyncio.create_task(requester.ask("single", timeout=10))
        assert await first == {}
        with pytest.raises(JobTimeoutError):
            await second
        assert asyncio.get_running_loop().time() - start == pytest.approx(10)

    in_virtual_time(test)


def test_a_group_that_times_out_names_the_workers_with_and_without_a_response(
    in_virtual_time: InVirtualTime,
):
    async def test(harness: JobHarness) -> None:
        requester = Requester()
        quick = Responder("quick")
        quick.release.set()
        await harness.start(requester, quick, Responder("slow"))
        with pytest.raises(JobGroupError, match=r"no response from 'slow' within 5 s") as caught:
            async with requester.job_group("quick", "slow", name="wait", timeout=5) as group:
                pass
        assert {n: o.status for n, o in caught.value.outcomes.items()} == {
            "quick": OutcomeStatus.COMPLETED,
            "slow": OutcomeStatus.TIMED_OUT,
        }
        assert group.responses == {"quick": {"from": "quick"}}

    in_virtual_time(test)


def test_no_worker_of_a_group_is_asked_before_all_are_ready(
    in_virtual_time: InVirtualTime,
):
    async def test(harness: JobHarness) -> None:
        requester, there = Requester(), Responder("there")
        await harness.start(requester, there)
        with pytest.raises(WorkerNotReadyError) as caught:
            async with requester.job_group("there", "absent", name="wait", timeout=3):
                pass
        assert there.ran == []
        assert {o.status for o in caught.value.outcomes.values()} == {OutcomeStatus.TIMED_OUT}

    in_virtual_time(test)


def test_fire_and_forget_job_that_times_out_is_cancelled_at_its_worker(
    in_virtual_time: InVirtualTime,
):
    async def test(harness: JobHarness) -> None:
        requester, responder = Requester(), Responder()
        await harness.start(requester, responder)
        await requester.request_job("responder", name="wait", timeout=2)
        await asyncio.sleep(2.5)
        await harness.settle()
        assert len(responder.cancelled) == 1
        assert not requester.job_groups

    in_virtual_time(test)


def test_timeout_counts_from_the_call_of_a_context_that_is_entered_later(
    in_virtual_time: InVirtualTime,
):
    """The time starts with the job: on entry, not when the context was made."""

    async def test(harness: JobHarness) -> None:
        requester, responder = Requester(), Responder()
        await harness.start(requester, responder)
        context = requester.job("responder", name="wait", timeout=1)
        await asyncio.sleep(5)
        start = asyncio.get_running_loop().time()
        with pytest.raises(JobTimeoutError):
            async with context:
                pass
        assert asyncio.get_running_loop().time() - start == pytest.approx(1)

    in_virtual_time(test)


def test_a_body_that_outlasts_the_deadline_raises_at_exit(
    in_virtual_time: InVirtualTime,
):
    async def test(harness: JobHarness) -> None:
        requester, responder = Requester(), Responder()
        await harness.start(requester, responder)
        with pytest.raises(JobTimeoutError):
            async with requester.job("responder", name="wait", timeout=1) as j:
                assert [event async for event in j] == []
                await asyncio.sleep(10)
        await harness.settle()
        assert len(responder.cancelled) == 1

    in_virtual_time(test)


def test_zero_is_a_deadline_and_infinity_is_not(in_virtual_time: InVirtualTime):
    async def test(harness: JobHarness) -> None:
        requester, responder = Requester(), Responder()
        await harness.start(requester, responder)
        with pytest.raises(TimeoutError):
            await requester.ask("responder", "wait", timeout=0)
        responder.release.set()
        assert await requester.ask("responder", "wait", timeout=float("inf")) == {
            "from": "responder"
        }

    in_virtual_time(test)


def test_a_hook_that_never_returns_does_not_outlast_the_deadline(
    in_virtual_time: InVirtualTime,
):
    async def test(harness: JobHarness) -> None:
        class Hanging(Requester):
            async def on_job_response(self, message) -> None:
                await asyncio.Event().wait()

        requester = Hanging()
        await harness.start(requester, Responder())
        assert (await requester.ask("responder", "echo", timeout=2))["from"] == "responder"
        assert asyncio.get_running_loop().time() >= 2
        for task in harness.runner.task_manager.current_tasks():
            if task.get_name().endswith("job_hooks"):
                task.cancel()

    in_virtual_time(test)


class Blocking(Responder):
    @job(name="block and respond")
    async def block(self, message: BusJobRequestMessage) -> dict:
        time.sleep(0.6)  # noqa: ASYNC251
        return {}

    @job(name="block and wait")
    async def block_and_wait(self, message: BusJobRequestMessage) -> dict:
        time.sleep(0.6)  # noqa: ASYNC251
        await self.release.wait()
        return {}


@pytest.mark.parametrize("bus_class", [AsyncQueueBus, RoutedBus])
@pytest.mark.parametrize("name", ["block and respond", "block and wait"])
async def test_a_blocked_event_loop_is_reported_with_its_duration(
    bus_class: type[WorkerBus], name: str
):
    async with JobHarness(bus_class()) as harness:
        requester, blocking = Requester(), Blocking()
        await harness.start(requester, blocking)
        with pytest.raises(JobTimeoutError) as caught:
            await requester.ask("responder", name, timeout=0.1)
        # The loop blocks for 0.6 s, after the job has been requested.
        blocked = caught.value.loop_blocked
        assert blocked > 0.45
        whose = "event loop of 'responder' and the requester"
        assert f"{whose} was blocked for at least {blocked:.1f} s" in str(caught.value)
        assert caught.value.outcomes["responder"].cancel_reason is CancelReason.DEADLINE
        assert not requester.job_groups


async def test_a_blocked_loop_of_the_requester_names_no_worker_elsewhere(job_harness: JobHarness):
    requester = Requester()
    await job_harness.start(requester)
    waiting = asyncio.create_task(requester.ask("elsewhere", timeout=0.1))
    await until(lambda: requester.job_groups)
    time.sleep(0.6)  # noqa: ASYNC251
    with pytest.raises(WorkerNotReadyError, match="event loop of the requester was") as caught:
        await waiting
    assert caught.value.loop_blocked > 0.3


def test_an_event_loop_that_runs_is_not_reported_as_blocked(in_virtual_time: InVirtualTime):
    async def test(harness: JobHarness) -> None:
        requester = Requester()
        await harness.start(requester, Responder())
        with pytest.raises(JobTimeoutError) as caught:
            await requester.ask("responder", "wait", timeout=5)
        assert caught.value.loop_blocked == 0.0
        assert "blocked" not in str(caught.value)

    in_virtual_time(test)
