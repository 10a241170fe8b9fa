"""Groups that need some of their workers: ``need`` and ``partial_after``."""

import asyncio
from typing import Any

import pytest
from pipecat.bus.messages import BusJobCancelMessage, BusJobRequestMessage, BusJobResponseMessage
from support.workers import Requester, Responder, cancelled, until

from pipecat_jobs import (
    BaseWorker,
    CancelReason,
    InvalidJobError,
    JobGroupError,
    JobGroupParams,
    JobTimeoutError,
    OutcomeStatus,
    WorkerNotReadyError,
    job,
)
from pipecat_jobs.testing import ChaosBus, JobHarness

pytestmark = pytest.mark.every_bus

NEVER_READY = "a worker that never starts"


class Failing(BaseWorker):
    @job(name="wait")
    async def fail(self, message: BusJobRequestMessage) -> dict:
        raise ValueError(f"{self.name} cannot")


def ask(requester: BaseWorker, *names: str, **keywords: Any) -> asyncio.Task[dict[str, Any]]:
    async def asking() -> dict[str, Any]:
        return await requester.job_group(*names, name="wait", **keywords)

    return asyncio.create_task(asking())


async def test_the_first_response_is_enough_and_the_other_jobs_are_cancelled(
    job_harness: JobHarness,
):
    requester, quick, slow = Requester(), Responder("quick"), Responder("slow")
    await job_harness.start(requester, slow, quick)
    group = requester.job_group("slow", "quick", name="wait", need="first")
    async with group:
        await slow.started.get()
        await quick.started.get()
        quick.release.set()
    await job_harness.settle()

    assert group.responses == {"quick": {"from": "quick"}}
    left = group.outcomes["slow"]
    assert (left.status, left.cancel_reason) == (OutcomeStatus.CANCELLED, CancelReason.NOT_NEEDED)
    assert slow.cancelled == slow.ran
    assert slow.hook_calls[0].reason == "not needed: the group has completed"
    assert requester.fired().count("on_job_completed") == 1
    assert job_harness.left_behind() == []


async def test_a_number_of_responses_is_enough(job_harness: JobHarness):
    requester, workers = Requester(), [Responder(name) for name in "abc"]
    await job_harness.start(requester, *workers)
    asking = ask(requester, "a", "b", "c", need=2)
    for worker in workers:
        await worker.started.get()
    workers[2].release.set()
    workers[0].release.set()

    assert await asking == {"a": {"from": "a"}, "c": {"from": "c"}}
    await job_harness.settle()
    assert workers[1].cancelled == workers[1].ran


async def test_a_worker_that_fails_ends_the_group_only_when_too_few_are_left(
    job_harness: JobHarness,
):
    requester, working = Requester(), Responder("working")
    await job_harness.start(requester, working, Failing("x"), Failing("y"))

    asking = ask(requester, "x", "working", need="first")
    await working.started.get()
    await job_harness.settle()
    working.release.set()
    assert await asking == {"working": {"from": "working"}}

    working.release.clear()
    with pytest.raises(JobGroupError, match=r"cannot; before that '[xy]': ValueError: ") as raised:
        await ask(requester, "x", "y", "working", need=2)
    await job_harness.settle()
    assert raised.value.outcomes["working"].cancel_reason is CancelReason.GROUP_FAILED
    assert len(working.cancelled) == 1
    assert "on_job_error" in requester.fired()
    assert job_harness.left_behind() == []


async def test_a_worker_that_is_not_ready_does_not_hold_up_the_others(job_harness: JobHarness):
    requester, ready = Requester(), Responder("ready")
    await job_harness.start(requester, ready)
    ready.release.set()

    assert await ask(requester, NEVER_READY, "ready", need="first") == {"ready": {"from": "ready"}}
    await job_harness.settle()
    assert job_harness.left_behind() == []


async def test_a_worker_is_asked_once_it_is_ready_and_has_its_own_payload(
    job_harness: JobHarness,
):
    requester, first, late = Requester(), Responder("first"), Responder("late")
    await job_harness.start(requester, first)
    payloads = {"first": {"n": 1}, "late": {"n": 2}}
    async with requester.job_group(
        "first", "late", name="echo", need=2, payloads=payloads, timeout=100
    ) as group:
        await until(lambda: group.outcomes)
        await job_harness.start(late)

    assert group.responses["late"] == {"from": "late", "payload": {"n": 2}}
    assert group.outcomes["late"].waited > 0
    await job_harness.settle()
    assert job_harness.left_behind() == []


async def test_cancelling_a_group_leaves_no_task_that_waits_for_a_worker(job_harness: JobHarness):
    requester, working = Requester(), Responder("working")
    await job_harness.start(requester, working)
    asking = ask(requester, NEVER_READY, "working", need=2)
    await working.started.get()

    def waiting() -> list[str]:
        names = [task.get_name() for task in job_harness.runner.task_manager.current_tasks()]
        return [name for name in names if "job_readiness" in name]

    assert len(waiting()) == 1

    await cancelled(asking)
    await job_harness.settle()

    assert working.cancelled == working.ran
    assert job_harness.left_behind() == []
    await until(lambda: not waiting())


async def test_a_group_whose_workers_have_all_ended_or_failed_does_not_wait(
    job_harness: JobHarness,
):
    requester, gone = Requester(), Responder("gone")
    await job_harness.start(requester, gone, Failing("failing"))
    asking = ask(requester, "gone", "failing", need="first")
    await gone.started.get()
    await job_harness.end(gone)
    with pytest.raises(JobGroupError):
        await asking


async def test_the_deadline_ends_a_group_and_tells_who_was_asked(job_harness: JobHarness):
    requester, working = Requester(), Responder("working")
    await job_harness.start(requester, working)
    with pytest.raises(JobTimeoutError, match="no response from 'working'") as raised:
        await ask(requester, NEVER_READY, "working", need="first", timeout=0.1)
    assert not isinstance(raised.value, WorkerNotReadyError)
    with pytest.raises(WorkerNotReadyError, match=f"'{NEVER_READY}' not ready"):
        await ask(requester, NEVER_READY, need="first", timeout=0.1)
    await job_harness.settle()
    assert job_harness.left_behind() == []


async def test_a_response_that_ends_a_group_also_ends_the_sending_of_its_requests(
    chaos_harness: JobHarness, chaos_bus: ChaosBus
):
    requester, quick, late = Requester(), Responder("quick"), Responder("late")
    await chaos_harness.start(requester, quick, late)
    quick.release.set()
    blocked = chaos_bus.block_publish(
        lambda m: isinstance(m, BusJobRequestMessage) and m.target == "late"
    )
    assert await ask(requester, "quick", "late", need="first") == {"quick": {"from": "quick"}}
    blocked.release()
    await chaos_harness.settle()
    assert late.ran == late.cancelled
    assert chaos_harness.left_behind() == []


async def test_a_late_request_that_the_bus_refuses_fails_its_worker_alone(
    chaos_harness: JobHarness, chaos_bus: ChaosBus, monkeypatch: pytest.MonkeyPatch
):
    requester, working, late = Requester(), Responder("working"), Responder("late")
    await chaos_harness.start(requester, working)
    send = chaos_bus.send

    async def refuse(message: Any) -> None:
        if isinstance(message, BusJobRequestMessage) and message.target == "late":
            raise ConnectionError("bus is down")
        await send(message)

    monkeypatch.setattr(chaos_bus, "send", refuse)
    group = requester.job_group("working", "late", name="wait", need="first")
    async with group:
        await working.started.get()
        await chaos_harness.start(late)
        await until(lambda: "late" in group.outcomes)
        working.release.set()

    assert group.outcomes["late"].cause == "ConnectionError: bus is down"
    assert group.responses == {"working": {"from": "working"}}
    await chaos_harness.settle()
    assert chaos_harness.left_behind() == []


async def test_what_is_there_after_a_time_is_the_value(job_harness: JobHarness):
    requester, quick, slow = Requester(), Responder("quick"), Responder("slow")
    await job_harness.start(requester, quick, slow)
    quick.release.set()
    group = requester.job_group("quick", "slow", name="wait", partial_after=0.5, timeout=100)
    assert await group == {"quick": {"from": "quick"}}
    assert group.outcomes["slow"].cancel_reason is CancelReason.NOT_NEEDED
    await job_harness.settle()
    assert slow.cancelled == slow.ran
    assert job_harness.left_behind() == []


async def test_without_a_response_by_then_the_first_one_is_the_value(job_harness: JobHarness):
    requester, one, two = Requester(), Responder("one"), Responder("two")
    await job_harness.start(requester, one, two)
    loop = asyncio.get_running_loop()
    passed = asyncio.Event()
    async with requester.job_group("one", "two", name="wait", partial_after=0.05) as group:
        loop.call_later(0.1, passed.set)
        await passed.wait()
        assert group.outcomes == {}
        one.release.set()
    assert group.responses == {"one": {"from": "one"}}
    assert group.outcomes["two"].cancel_reason is CancelReason.NOT_NEEDED


async def test_without_a_response_by_then_a_failure_still_ends_a_group_that_needs_all(
    job_harness: JobHarness,
):
    class FailsLate(Responder):
        @job(name="wait")
        async def wait_for_release(self, message: BusJobRequestMessage) -> dict:
            await self.release.wait()
            raise ValueError("late")

    requester, failing, working = Requester(), FailsLate("failing"), Responder("working")
    await job_harness.start(requester, failing, working)
    loop = asyncio.get_running_loop()
    passed = asyncio.Event()
    with pytest.raises(JobGroupError, match="late"):
        async with requester.job_group("failing", "working", name="wait", partial_after=0.05):
            loop.call_later(0.1, passed.set)
            await passed.wait()
            failing.release.set()


async def test_the_timer_of_a_partial_value_is_cleared_at_the_end(job_harness: JobHarness):
    requester = Requester()
    await job_harness.start(requester, Responder())
    loop = asyncio.get_running_loop()
    timers: list[asyncio.TimerHandle] = []
    call_at = loop.call_at

    def keep(*args: Any, **kwargs: Any) -> asyncio.TimerHandle:
        timers.append(call_at(*args, **kwargs))
        return timers[-1]

    loop.call_at = keep  # type: ignore[method-assign]
    await requester.job_group("responder", name="echo", partial_after=3600)
    assert [timer.cancelled() for timer in timers if timer.when() > loop.time() + 60] == [True]


async def test_an_override_of_create_job_group_keeps_what_the_group_needs(
    job_harness: JobHarness,
):
    class Own(Requester):
        async def create_job_group_and_request_job(self, worker_names, *, params=None, **keywords):
            copied = None if params is None else params.model_copy()
            return await super().create_job_group_and_request_job(
                worker_names, params=copied, **keywords
            )

    requester, quick = Own(), Responder("quick")
    await job_harness.start(requester, quick, Responder("slow"))
    quick.release.set()
    assert list(await ask(requester, "quick", "slow", need="first")) == ["quick"]


async def test_the_workers_that_are_not_needed_get_one_cancel_each(
    chaos_harness: JobHarness, chaos_bus: ChaosBus
):
    requester, quick = Requester(), Responder("quick")
    await chaos_harness.start(requester, quick, Responder("b"), Responder("c"))
    quick.release.set()
    await ask(requester, "quick", "b", "c", need="first")
    await chaos_harness.settle()
    cancels = [m.target for m in chaos_bus.sent if isinstance(m, BusJobCancelMessage)]
    assert sorted(cancels) == ["b", "c"]


async def test_a_fire_and_forget_group_announces_its_completion_with_the_first_response(
    job_harness: JobHarness,
):
    requester, quick, slow = Requester(), Responder("quick"), Responder("slow")
    await job_harness.start(requester, quick, slow)
    completed = asyncio.Event()

    @requester.event_handler("on_job_completed")
    async def on_job_completed(_: BaseWorker, result: Any) -> None:
        completed.set()

    quick.release.set()
    await requester.request_job_group("quick", "slow", name="wait", need="first")
    await completed.wait()
    assert isinstance(requester.hooks[0][1], BusJobResponseMessage)
    assert requester.job_groups == {}


@pytest.mark.parametrize(
    ("keywords", "text"),
    [
        ({"need": "some"}, "need is 'some'; give one of 'all', 'first'"),
        ({"need": 0}, "need is 0"),
        ({"need": 3}, "more than the 2 workers that are named"),
        ({"need": True}, "need is True"),
        ({"need": 1.0}, "need is 1.0"),
        ({"need": "first", "cancel_on_error": True}, "leave one of them out"),
        ({"need": 1, "cancel_on_error": False}, "leave one of them out"),
        ({"params": JobGroupParams(need=1, cancel_on_error=False)}, "leave one of them out"),
        ({"params": JobGroupParams(need=3)}, "more than the 2 workers that are named"),
        ({"partial_after": 0}, "partial_after is 0; give more than zero seconds"),
        ({"partial_after": "2"}, "partial_after is '2'"),
        ({"partial_after": 2, "timeout": 2}, "partial_after is 2, not before timeout=2"),
    ],
)
def test_what_a_group_cannot_need_is_refused(keywords: dict[str, Any], text: str):
    with pytest.raises(InvalidJobError, match=text):
        BaseWorker("requester").job_group("a", "b", **keywords)
