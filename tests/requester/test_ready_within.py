"""``ready_within`` bounds the wait for the workers alone."""

import asyncio
from typing import Any

import pytest
from support.workers import Requester, Responder, until

from pipecat_jobs import (
    BaseWorker,
    CancelReason,
    InvalidJobError,
    OutcomeStatus,
    WorkerNotReadyError,
)
from pipecat_jobs.testing import JobHarness

pytestmark = pytest.mark.every_bus

NEVER = "never"


async def test_a_worker_that_is_not_ready_in_time_ends_the_job_and_the_error_says_so(
    job_harness: JobHarness,
):
    requester = Requester()
    await job_harness.start(requester)
    text = r"'never' not ready within 0.05 s \(ready_within\); known workers: 'requester'"
    with pytest.raises(WorkerNotReadyError, match=text) as raised:
        await requester.job(NEVER, ready_within=0.05, timeout=100)
    outcome = raised.value.outcomes[NEVER]
    assert (outcome.status, outcome.cancel_reason) == (
        OutcomeStatus.TIMED_OUT,
        CancelReason.DEADLINE,
    )
    assert outcome.reason == "not ready within 0.05 s"
    assert job_harness.left_behind() == []


async def test_the_error_names_the_workers_that_became_known_during_the_wait(
    job_harness: JobHarness,
):
    requester = Requester()
    await job_harness.start(requester)

    async def ask() -> None:
        await requester.job(NEVER, ready_within=2, timeout=100)

    asking = asyncio.create_task(ask())
    await until(lambda: list(requester.open_jobs))
    await job_harness.start(Responder())
    with pytest.raises(WorkerNotReadyError, match=r"known workers: 'requester', 'responder'$"):
        await asking


async def test_entering_the_block_raises_and_so_does_a_request_without_a_block(
    job_harness: JobHarness,
):
    requester = Requester()
    await job_harness.start(requester)
    with pytest.raises(WorkerNotReadyError):
        async with requester.job(NEVER, ready_within=0.05):
            raise AssertionError("the block was entered")
    with pytest.raises(WorkerNotReadyError):
        await requester.request_job(NEVER, ready_within=0.05)


async def test_it_does_not_bound_the_work(job_harness: JobHarness):
    requester, responder = Requester(), Responder()
    await job_harness.start(requester, responder)
    passed = asyncio.Event()
    async with requester.job("responder", name="wait", ready_within=0.01) as j:
        asyncio.get_running_loop().call_later(0.05, passed.set)
        await passed.wait()
        responder.release.set()
    assert j.response == {"from": "responder"}


async def test_in_a_group_that_needs_all_the_other_workers_are_not_asked(
    job_harness: JobHarness,
):
    requester, ready = Requester(), Responder("ready")
    await job_harness.start(requester, ready)
    with pytest.raises(WorkerNotReadyError, match="'never' not ready") as raised:
        await requester.job_group("ready", NEVER, name="wait", ready_within=0.05)
    assert raised.value.outcomes["ready"].cancel_reason is CancelReason.GROUP_FAILED
    await job_harness.settle()
    assert ready.ran == []
    assert job_harness.left_behind() == []


async def test_with_cancel_on_error_false_the_others_go_on(job_harness: JobHarness):
    requester, ready = Requester(), Responder("ready")
    await job_harness.start(requester, ready)
    group = requester.job_group(
        "ready", NEVER, name="echo", ready_within=0.05, cancel_on_error=False
    )
    assert list(await group) == ["ready"]
    assert group.outcomes[NEVER].status is OutcomeStatus.TIMED_OUT
    await job_harness.settle()
    assert job_harness.left_behind() == []


async def test_with_a_need_the_others_go_on_until_too_few_are_left(job_harness: JobHarness):
    requester, ready = Requester(), Responder("ready")
    await job_harness.start(requester, ready)
    async with requester.job_group(
        "ready", NEVER, name="wait", ready_within=0.05, need="first"
    ) as group:
        await until(lambda: NEVER in group.outcomes)
        ready.release.set()
    assert group.outcomes[NEVER].status is OutcomeStatus.TIMED_OUT

    with pytest.raises(WorkerNotReadyError, match=r"within 0.05 s \(ready_within\)") as raised:
        await requester.job_group("ready", NEVER, name="wait", ready_within=0.05, need=2)
    assert set(raised.value.outcomes) == {"ready", NEVER}
    await job_harness.settle()
    assert job_harness.left_behind() == []


async def test_a_worker_that_is_ready_in_time_is_asked(job_harness: JobHarness):
    requester, late = Requester(), Responder("late")
    await job_harness.start(requester)

    async def ask() -> dict[str, Any]:
        return await requester.job("late", name="echo", ready_within=100)

    asking = asyncio.create_task(ask())
    await until(lambda: requester.job_groups)
    await job_harness.start(late)
    assert (await asking)["from"] == "late"


@pytest.mark.parametrize(
    ("keywords", "text"),
    [
        ({"ready_within": 3, "timeout": 2}, "ready_within is 3, longer than timeout=2"),
        ({"ready_within": -1}, "ready_within is -1; give zero or more seconds"),
        ({"ready_within": "1"}, "ready_within is '1'"),
    ],
)
def test_a_time_that_cannot_be_used_is_refused(keywords: dict[str, Any], text: str):
    with pytest.raises(InvalidJobError, match=text):
        BaseWorker("requester").job("a", **keywords)
