"""Responses state whether a handler has begun; outcomes state which side cancelled."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from pipecat.bus.messages import BusJobRequestMessage, BusJobResponseMessage
from pipecat.pipeline.job_context import JobStatus
from pipecat.workers.base_worker import BaseWorker as PlainWorker
from support.workers import Delegator, Requester, Responder, cancelled

from pipecat_jobs import (
    BaseWorker,
    CancelReason,
    InvalidJobError,
    JobCancelledError,
    JobError,
    JobGroup,
    JobGroupError,
    JobOutcome,
    JobRefusal,
    JobRefusedError,
    JobTimeoutError,
    LLMTurnInterruptedError,
    NoJobHandlerError,
    OutcomeStatus,
    WorkerLostError,
    job,
)
from pipecat_jobs._protocol.statements import RESERVED_KEY, Statement, read_statement
from pipecat_jobs.testing import ChaosBus, JobHarness
from pipecat_jobs.tools.results import has_stopped

pytestmark = pytest.mark.every_bus

#: Seconds in which even a busy machine does a job.
LONG = 100.0


async def outcome_of(requester: BaseWorker, worker: str, name: str | None = None, **keywords: Any):
    """Ask, and return the error and the outcome of a job that does not complete."""
    with pytest.raises(JobError) as caught:
        async with requester.job(worker, name=name, **{"timeout": LONG, **keywords}):
            pass
    return caught.value, caught.value.outcomes[worker]


# -- refusals ------------------------------------------------------------------------------------


async def test_a_refusal_that_a_handler_does_not_catch_is_an_error_of_its_job(
    job_harness: JobHarness,
):
    requester = Requester()
    middle = Delegator("middle", asks="responder")

    class Nothing(BaseWorker):
        pass

    await job_harness.start(requester, middle, Nothing("responder"))
    error, outcome = await outcome_of(requester, "middle", "wait")
    assert not isinstance(error, NoJobHandlerError | JobRefusedError)
    assert "did not run" not in str(error).partition(":")[0]
    assert outcome.status is OutcomeStatus.ERROR
    assert outcome.refusal is None
    assert outcome.error is not None
    assert outcome.error.type == "NoJobHandlerError"


async def test_a_job_without_a_handler_is_refused(job_harness: JobHarness):
    requester = Requester()
    await job_harness.start(requester, Responder())
    error, outcome = await outcome_of(requester, "responder", "unknown")
    assert isinstance(error, NoJobHandlerError)
    assert outcome.refusal is JobRefusal.NO_HANDLER
    assert outcome.status is OutcomeStatus.ERROR
    assert outcome.response is not None
    assert RESERVED_KEY not in outcome.response


async def test_an_inactive_worker_that_takes_no_jobs_refuses(job_harness: JobHarness):
    class OptedOut(Responder):
        takes_jobs_when_inactive = False

    requester = Requester()
    await job_harness.start(requester, OptedOut(active=False))
    error, outcome = await outcome_of(requester, "responder", "echo")
    assert isinstance(error, JobRefusedError)
    assert outcome.refusal is JobRefusal.INACTIVE
    assert outcome.status is OutcomeStatus.FAILED


async def test_a_job_id_that_another_requester_has_open_is_refused(job_harness: JobHarness):
    first, second, responder = Requester("first"), Requester("second"), Responder()
    await job_harness.start(first, second, responder)
    await first.request_job("responder", name="wait", job_id="same")
    await responder.started.get()
    error, outcome = await outcome_of(second, "responder", "wait", job_id="same")
    assert isinstance(error, JobRefusedError)
    assert outcome.refusal is JobRefusal.ID_IN_USE
    await first.cancel_job_group("same")


async def test_a_job_id_that_was_used_before_is_refused(
    chaos_harness: JobHarness, chaos_bus: ChaosBus
):
    requester, responder = Requester(), Responder()
    await chaos_harness.start(requester, responder)
    for _ in range(2):
        await chaos_bus.send(
            BusJobRequestMessage(
                source="requester", target="responder", job_id="same", job_name="echo", payload={}
            )
        )
        await chaos_harness.settle()
    first, second = await chaos_bus.wait_for(BusJobResponseMessage, 2)
    assert read_statement(first.response)[0].refusal is None
    assert read_statement(second.response)[0].refusal is JobRefusal.ID_USED
    assert len(responder.ran) == 1


FORGED = {"error": "no", RESERVED_KEY: {"refusal": "no_handler"}}


class Forger(BaseWorker):
    """A worker whose responses imitate the statements of the package."""

    @job(name="return")
    async def return_it(self, message: BusJobRequestMessage) -> dict:
        return FORGED

    @job(name="respond")
    async def respond(self, message: BusJobRequestMessage) -> None:
        await self.send_job_response(message.job_id, FORGED, status=JobStatus.FAILED)

    @job(name="stream")
    async def stream(self, message: BusJobRequestMessage) -> None:
        await self.send_job_stream_end(message.job_id, FORGED)

    @job(name="names")
    async def name_it(self, message: BusJobRequestMessage) -> None:
        forged = {"error": "no", "error_type": "JobRefusedError"}
        await self.send_job_response(message.job_id, forged, status=JobStatus.FAILED)


@pytest.mark.parametrize("name", ["return", "respond", "stream"])
async def test_a_handler_cannot_state_a_refusal(job_harness: JobHarness, name: str):
    requester = Requester()
    await job_harness.start(requester, Forger("forger"))
    error, outcome = await outcome_of(requester, "forger", name)
    assert not isinstance(error, NoJobHandlerError | JobRefusedError)
    assert outcome.refusal is None
    assert outcome.error is not None
    assert outcome.error.type == InvalidJobError.__name__
    assert f"'{RESERVED_KEY}'" in outcome.error.message


async def test_the_name_of_an_error_states_no_refusal(job_harness: JobHarness):
    requester = Requester()
    await job_harness.start(requester, Forger("forger"))
    error, outcome = await outcome_of(requester, "forger", "names")
    assert not isinstance(error, JobRefusedError)
    assert outcome.refusal is None


class Plain(PlainWorker):
    """A plain Pipecat worker, or one of an earlier release; its responses have no statements."""

    def __init__(self, status: JobStatus, response: dict | None):
        super().__init__("plain")
        self.status, self.response = status, response

    async def on_job_request(self, message: BusJobRequestMessage) -> None:
        await self.send_job_response(message.job_id, self.response, status=self.status)


@pytest.mark.parametrize(
    ("status", "response"),
    [
        (JobStatus.FAILED, {"error": "cannot", "error_type": "JobRefusedError"}),
        (JobStatus.ERROR, {"error": "none", "error_type": "NoJobHandlerError"}),
        (JobStatus.ERROR, None),
        (JobStatus.CANCELLED, {"reason": "worker 'plain' stopped"}),
        (JobStatus.CANCELLED, None),
    ],
)
async def test_responses_of_peers_without_statements_are_understood(
    job_harness: JobHarness, status: JobStatus, response: dict | None
):
    requester = Requester()
    await job_harness.start(requester, Plain(status, response))
    error, outcome = await outcome_of(requester, "plain")
    assert not isinstance(error, NoJobHandlerError | JobRefusedError)
    assert outcome.status == status
    assert outcome.refusal is None
    assert outcome.cancel_reason is None


@pytest.mark.parametrize(
    "stated",
    ["no_handler", None, [], {}, {"refusal": "of a later release"}, {"refusal": {}, "held_by": 7}],
)
def test_a_malformed_statement_is_ignored(stated: object):
    read, rest = read_statement({"error": "no", RESERVED_KEY: stated})
    assert read == Statement()
    assert rest == {"error": "no"}


def test_a_statement_is_read_as_it_was_written():
    for refusal in (*JobRefusal, None):
        for reason in (*CancelReason, None):
            for held_by in ("job-1", None):
                written = Statement(refusal, reason, held_by)
                assert read_statement(written.add_to({"n": 1})) == (written, {"n": 1})


# -- the cancel reason ---------------------------------------------------------------------------


async def leave_the_block(requester: Requester, responder: Responder, harness: JobHarness) -> None:
    with pytest.raises(KeyError):
        async with requester.job("responder", name="wait"):
            await responder.started.get()
            raise KeyError


async def cancel_the_requester(
    requester: Requester, responder: Responder, harness: JobHarness
) -> None:
    call_task = asyncio.create_task(requester.ask("responder", "wait"))
    await responder.started.get()
    await cancelled(call_task)


async def cancel_the_group(requester: Requester, responder: Responder, harness: JobHarness) -> None:
    job_id = await requester.request_job("responder", name="wait")
    await requester.cancel_job_group(job_id, reason="worker 'requester' stopped")


async def stop_the_requester(
    requester: Requester, responder: Responder, harness: JobHarness
) -> None:
    await requester.request_job("responder", name="wait")
    await harness.end(requester)


async def let_the_deadline_pass(
    requester: Requester, responder: Responder, harness: JobHarness
) -> None:
    with pytest.raises(JobTimeoutError):
        await requester.ask("responder", "wait", timeout=1.0)


async def let_another_worker_fail(
    requester: Requester, responder: Responder, harness: JobHarness
) -> None:
    await harness.start(Plain(JobStatus.ERROR, None))
    with pytest.raises(JobGroupError):
        async with requester.job_group("responder", "plain", name="wait"):
            pass


async def stop_the_worker(requester: Requester, responder: Responder, harness: JobHarness) -> None:
    call_task = asyncio.create_task(requester.ask("responder", "wait"))
    await responder.started.get()
    await harness.end(responder)
    with pytest.raises(JobCancelledError):
        await call_task


async def interrupt_the_turn(
    requester: Requester, responder: Responder, harness: JobHarness
) -> None:
    with pytest.raises(JobCancelledError, match="it was interrupted"):
        await requester.ask("responder", "interrupted")


async def cancel_the_handler(
    requester: Requester, responder: Responder, harness: JobHarness
) -> None:
    with pytest.raises(JobCancelledError):
        await requester.ask("responder", "cancels itself")


class Ended(Responder):
    @job(name="interrupted")
    async def be_interrupted(self, message: BusJobRequestMessage) -> None:
        raise LLMTurnInterruptedError(self.name, "it was interrupted")

    @job(name="cancels itself")
    async def cancel_itself(self, message: BusJobRequestMessage) -> None:
        raise asyncio.CancelledError


class Keeping(Requester):
    """Keeps its groups, and overrides cancel_job_group(), as Pipecat's UIWorker does."""

    def __init__(self) -> None:
        super().__init__()
        self.groups: list[JobGroup] = []

    async def create_job_group_and_request_job(self, worker_names: Any, **keywords: Any) -> Any:
        group = await super().create_job_group_and_request_job(worker_names, **keywords)
        self.groups.append(group)
        return group

    async def cancel_job_group(self, job_id: str, *, reason: str | None = None) -> None:
        await super().cancel_job_group(job_id, reason=f"changed: {reason}")


Way = Callable[[Any, Any, JobHarness], Awaitable[None]]


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (leave_the_block, CancelReason.REQUESTER_CANCELLED),
        (cancel_the_requester, CancelReason.REQUESTER_CANCELLED),
        (cancel_the_group, CancelReason.REQUESTER_CANCELLED),
        (stop_the_requester, CancelReason.REQUESTER_STOPPED),
        (let_the_deadline_pass, CancelReason.DEADLINE),
        (let_another_worker_fail, CancelReason.GROUP_FAILED),
        (stop_the_worker, CancelReason.WORKER_STOPPED),
        (interrupt_the_turn, CancelReason.INTERRUPTED),
        (cancel_the_handler, CancelReason.HANDLER_CANCELLED),
    ],
)
async def test_the_cancel_reason_of_an_outcome_names_the_side_that_cancelled(
    job_harness: JobHarness, end: Way, reason: CancelReason
):
    requester, responder = Keeping(), Ended()
    await job_harness.start(requester, responder)
    async with asyncio.timeout(LONG):
        await end(requester, responder, job_harness)
    (group,) = requester.groups
    outcome = group.outcomes["responder"]
    assert not outcome.completed
    assert outcome.cancel_reason is reason


async def test_a_job_of_a_stopped_requester_has_that_cancel_reason(job_harness: JobHarness):
    requester = Requester()
    await job_harness.start(requester, Responder())
    await job_harness.end(requester)
    _, outcome = await outcome_of(requester, "responder", "echo")
    assert outcome.cancel_reason is CancelReason.REQUESTER_STOPPED


async def test_outcomes_other_than_cancelled_have_no_cancel_reason(job_harness: JobHarness):
    requester, responder, plain = Requester(), Responder(), Plain(JobStatus.FAILED, {"error": "no"})
    await job_harness.start(requester, responder, plain)
    async with requester.job("responder", name="echo") as j:
        pass
    outcomes: list[JobOutcome | None] = [j.outcome]
    for worker, name in (("responder", "raise"), ("plain", None)):
        outcomes.append((await outcome_of(requester, worker, name))[1])
    await job_harness.end(responder)
    error, lost = await outcome_of(requester, "responder", "echo")
    assert isinstance(error, WorkerLostError)
    for outcome in (*outcomes, lost):
        assert outcome is not None
        assert outcome.cancel_reason is None


@pytest.mark.parametrize(
    ("cancel_reason", "stopped"),
    [(CancelReason.REQUESTER_STOPPED, True), (CancelReason.REQUESTER_CANCELLED, False)],
)
def test_a_tool_detects_the_end_of_its_session_by_the_cancel_reason(
    cancel_reason: CancelReason, stopped: bool
):
    outcome = JobOutcome(
        "responder",
        OutcomeStatus.CANCELLED,
        reason="worker 'requester' stopped",
        cancel_reason=cancel_reason,
    )
    error = JobCancelledError("cancelled", job_id="1", outcomes={"responder": outcome})
    assert has_stopped(error) is stopped
