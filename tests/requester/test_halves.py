"""The two halves without Pipecat's worker: a job handle, a policy over handles, their states."""

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from pipecat.bus.messages import BusJobCancelMessage, BusJobRequestMessage
from support.half_runtime import Network, Worker
from support.snippets import ROOT

from pipecat_jobs import (
    CancelReason,
    InvalidJobError,
    JobGroup,
    JobGroupError,
    OutcomeStatus,
    Retry,
    WorkerNotReadyError,
)
from pipecat_jobs._requester.call import Call
from pipecat_jobs._requester.handle import TRANSITIONS, HandleState, JobHandle
from pipecat_jobs._requester.policy import Policy, Verdict
from pipecat_jobs.outcomes import JobOutcome
from pipecat_jobs.params import CheckedParams, JobGroupKeywords, group_params
from pipecat_jobs.steering import SteerOutcome

#: Seconds; longer than any part of a test takes.
LONG = 60.0


@dataclass
class Enough:
    """A policy that succeeds with a number of responses."""

    need: int

    def judge(self, latest: JobOutcome, completed: int, pending: int) -> Verdict:
        if completed >= self.need:
            return Verdict.SUCCEEDED
        return Verdict.OPEN if completed + pending >= self.need else Verdict.FAILED


class Asked:
    """The requests that one worker got, and how they ended."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.proceed = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def handle(self, request: BusJobRequestMessage) -> dict[str, Any]:
        self.begun.set()
        try:
            await self.proceed.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        if request.payload:
            raise ValueError(request.payload["fail"])
        return {"from": request.target}


@pytest.fixture
async def network() -> AsyncIterator[Network]:
    network = Network()
    yield network
    async with asyncio.timeout(LONG):
        while network.tasks:
            await asyncio.wait(set(network.tasks))
    for worker in network.workers.values():
        assert not worker.groups
        assert not worker.active
    assert not network.watched


async def join(network: Network, *names: str) -> tuple[Worker, dict[str, Asked]]:
    requester = Worker("requester", network)
    await network.join(requester)
    asked = {name: Asked() for name in names}
    for name in names:
        await network.join(Worker(name, network, {"work": asked[name].handle}))
    return requester, asked


def params(**keywords: Any) -> CheckedParams:
    return group_params(None, JobGroupKeywords(**{"name": "work", **keywords}), JobGroupKeywords)


async def dispatch(
    requester: Worker, *names: str, policy: Policy | None = None, **keywords: Any
) -> JobGroup:
    call = Call(params(**keywords), policy=policy)
    group = await requester.requester.dispatch(list(names), call)
    assert isinstance(group, JobGroup)
    return group


async def test_a_handle_is_awaited_for_the_outcome_at_its_worker(network: Network):
    requester, asked = await join(network, "a", "b")
    group = await dispatch(requester, "a", "b")
    assert [handle.state for handle in group.handles.values()] == [HandleState.OPEN] * 2

    asked["b"].proceed.set()
    outcome = await group.handles["b"]

    assert outcome is group.outcomes["b"]
    assert outcome.response == {"from": "b"}
    assert group.handles["b"].state is HandleState.SETTLED
    assert group.handles["a"].outcome is None
    asked["a"].proceed.set()
    await group.wait()
    assert (await group.handles["a"]).completed


async def test_a_worker_that_is_asked_again_has_to_be_ready_within_ready_within(network: Network):
    requester, _ = await join(network, "a")
    retry = Retry(wait_initial=0, attempts=3)
    group = await dispatch(requester, "a", retry=retry, ready_within=0.05, timeout=LONG)
    gone = network.workers.pop("a")
    requester.requester.lost("a", "its process is gone")

    with pytest.raises(WorkerNotReadyError, match=r"'a' not ready within 0.05 s \(ready_within\)"):
        await group.wait()

    outcome = group.outcomes["a"]
    assert outcome.status is OutcomeStatus.TIMED_OUT
    assert [attempt.status for attempt in outcome.attempts] == [OutcomeStatus.LOST]
    network.workers["a"] = gone
    await gone.executor.stop()


async def test_awaiting_a_handle_raises_nothing_for_a_job_that_failed(network: Network):
    requester, asked = await join(network, "a")
    group = await dispatch(requester, "a", payload={"fail": "no"})
    asked["a"].proceed.set()

    outcome = await group.handles["a"]

    assert outcome.status is OutcomeStatus.ERROR
    with pytest.raises(JobGroupError):
        await group.wait()


async def test_a_handle_cancels_its_job_and_leaves_the_others_of_the_group(network: Network):
    requester, asked = await join(network, "a", "b")
    group = await dispatch(requester, "a", "b", cancel_on_error=False)
    await asked["a"].begun.wait()

    await group.handles["a"].cancel("enough")

    assert (await group.handles["a"]).cancel_reason is CancelReason.REQUESTER_CANCELLED
    await asked["a"].cancelled.wait()
    assert not group.is_done
    asked["b"].proceed.set()
    await group.wait()
    assert group.responses == {"b": {"from": "b"}}
    assert not asked["b"].cancelled.is_set()


async def test_a_group_that_needs_every_job_fails_when_one_is_cancelled_by_its_handle(
    network: Network,
):
    requester, asked = await join(network, "a", "b")
    group = await dispatch(requester, "a", "b")
    await asked["b"].begun.wait()

    await group.handles["a"].cancel("enough")

    with pytest.raises(JobGroupError, match="enough"):
        await group.wait()
    await asked["b"].cancelled.wait()
    assert group.outcomes["b"].cancel_reason is CancelReason.GROUP_FAILED
    cancels = [sent.target for sent in network.sent if isinstance(sent, BusJobCancelMessage)]
    assert cancels == ["a", "b"]


async def test_cancelling_a_handle_that_has_an_outcome_sends_nothing(network: Network):
    requester, asked = await join(network, "a")
    group = await dispatch(requester, "a")
    asked["a"].proceed.set()
    await group.wait()

    await group.handles["a"].cancel()

    assert not [message for message in network.sent if isinstance(message, BusJobCancelMessage)]


async def test_a_handle_of_a_worker_that_is_not_ready_is_cancelled_without_a_request(
    network: Network,
):
    requester, asked = await join(network, "a")
    call = Call(params(cancel_on_error=False, job_id="job"))
    dispatching = asyncio.create_task(requester.requester.dispatch(["a", "late"], call))
    await network.waited_for.wait()
    group = requester.groups["job"]
    assert isinstance(group, JobGroup)
    assert group.handles["late"].state is HandleState.UNSENT

    await group.handles["late"].cancel()
    await network.join(Worker("late", network, {"work": Asked().handle}))

    assert await dispatching is group
    asked["a"].proceed.set()
    await group.wait()
    assert [m.target for m in network.sent if isinstance(m, BusJobRequestMessage)] == ["a"]


async def test_a_policy_succeeds_with_enough_responses_and_cancels_the_rest(network: Network):
    requester, asked = await join(network, "a", "b", "c")
    group = await dispatch(requester, "a", "b", "c", policy=Enough(2))
    for each in asked.values():
        await each.begun.wait()
    asked["a"].proceed.set()
    asked["c"].proceed.set()

    await group.wait()

    assert group.responses == {"a": {"from": "a"}, "c": {"from": "c"}}
    assert not group.failed
    left = group.outcomes["b"]
    assert (left.status, left.cancel_reason) == (OutcomeStatus.CANCELLED, CancelReason.NOT_NEEDED)
    await asked["b"].cancelled.wait()


async def test_a_policy_survives_a_job_that_fails_while_enough_can_respond(network: Network):
    requester, asked = await join(network, "a", "b")
    group = await dispatch(requester, "a", "b", policy=Enough(1))
    await group.handles["a"].cancel()
    asked["b"].proceed.set()

    await group.wait()

    assert group.responses == {"b": {"from": "b"}}


async def test_a_policy_fails_once_too_few_can_respond(network: Network):
    requester, asked = await join(network, "a", "b", "c")
    group = await dispatch(requester, "a", "b", "c", policy=Enough(2))
    await asked["c"].begun.wait()
    await group.handles["a"].cancel()
    assert not group.is_done

    await group.handles["b"].cancel()

    with pytest.raises(JobGroupError):
        await group.wait()
    await asked["c"].cancelled.wait()


async def test_a_worker_that_has_ended_or_ends_during_the_job_is_lost(network: Network):
    requester, asked = await join(network, "a", "gone")
    network.ended["gone"] = "worker 'gone' has ended"
    group = await dispatch(requester, "a", "gone", cancel_on_error=False)
    assert (await group.handles["gone"]).status is OutcomeStatus.LOST

    await asked["a"].begun.wait()
    network.watched["a"]("worker 'a' has ended")

    assert (await group.handles["a"]).status is OutcomeStatus.LOST
    await group.wait()


async def test_the_handle_of_a_group_that_was_built_by_hand_refuses_to_cancel():
    group = JobGroup("job", ["a"])
    assert group.handles["a"].state is HandleState.OPEN

    with pytest.raises(InvalidJobError, match="cancel_job_group"):
        await group.handles["a"].cancel()


async def test_a_request_for_a_job_without_a_handler_names_the_class_of_the_runtime(
    network: Network,
):
    requester, _ = await join(network, "a")
    group = await dispatch(requester, "a", name="other")

    outcome = await group.handles["a"]

    assert outcome.error is not None
    assert "worker 'a' (Worker) has no handler for job 'other'" in outcome.error.message
    with pytest.raises(JobGroupError):
        await group.wait()


def new_handle() -> JobHandle:
    async def cancel(job_id: str, worker_name: str, reason: str) -> None:
        raise AssertionError("not cancelled")

    async def steer(handle: JobHandle, data: dict) -> SteerOutcome:
        return SteerOutcome("over", handle.worker)

    return JobHandle("job", "a", 0.0, cancel, steer)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("mark_sent settle", HandleState.SETTLED),
        ("mark_sent abandon", HandleState.ABANDONED),
        ("mark_sent abandon release", HandleState.SETTLED),
        ("abandon", HandleState.SETTLED),
        ("settle", HandleState.SETTLED),
    ],
)
def test_a_handle_goes_through_these_states(path: str, expected: HandleState):
    handle = new_handle()
    for step in path.split():
        take(handle, step)
    assert handle.state is expected


@pytest.mark.parametrize(
    "path",
    [
        "mark_sent mark_sent",
        "mark_sent settle settle",
        "mark_sent abandon abandon",
        "mark_sent settle release",
    ],
)
def test_a_handle_refuses_a_state_that_does_not_follow(path: str):
    handle = new_handle()
    *steps, last = path.split()
    for step in steps:
        take(handle, step)
    with pytest.raises(AssertionError):
        take(handle, last)


def take(handle: JobHandle, step: str) -> None:
    match step:
        case "mark_sent":
            handle.mark_sent(1.0)
        case "settle":
            handle.settle(2.0, OutcomeStatus.COMPLETED, {})
        case "abandon":
            handle.abandon(2.0, OutcomeStatus.CANCELLED, {})
        case _:
            handle.release()


def test_the_diagram_of_the_docs_shows_the_transitions_of_a_handle():
    diagram = (ROOT / "docs/explanation/jobs.md").read_text().split("```mermaid")[2].split("```")[0]
    drawn = {
        (HandleState(start), HandleState(end.partition(":")[0]))
        for start, end in re.findall(r"(\w+) --> (\w+)", diagram)
    }
    assert drawn == {(start, end) for start, ends in TRANSITIONS.items() for end in ends}
