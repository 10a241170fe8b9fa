"""The states of a job at its worker: the transitions, and the meaning of each state."""

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pipecat.bus.messages import BusJobRequestMessage
from support.snippets import ROOT
from support.workers import Requester

from pipecat_jobs import BaseWorker, job
from pipecat_jobs._executor.execution import TRANSITIONS, Execution, ExecutionState
from pipecat_jobs.testing import JobHarness

WAITING, RUNNING, RETURNED = (
    ExecutionState.WAITING,
    ExecutionState.RUNNING,
    ExecutionState.RETURNED,
)
CANCELLING, RESPONDING, ENDED = (
    ExecutionState.CANCELLING,
    ExecutionState.RESPONDING,
    ExecutionState.ENDED,
)


def execution() -> Execution:
    return Execution(BusJobRequestMessage(source="requester", target="worker", job_id="1"))


def respond(execution: Execution) -> None:
    if execution.is_open:
        execution.begin_response()


#: Everything that can happen to a job, in any order.
STEPS: list[Callable[[Execution], object]] = [
    Execution.cancel,
    respond,
    Execution.fail_response,
    Execution.end,
]


def test_every_state_has_a_row_of_transitions():
    assert set(TRANSITIONS) == set(ExecutionState)
    assert TRANSITIONS[ENDED] == frozenset()


def test_the_diagram_of_the_docs_shows_the_transitions():
    diagram = (ROOT / "docs/explanation/jobs.md").read_text().split("```mermaid")[1].split("```")[0]
    drawn = {
        (ExecutionState(start.lower()), ExecutionState(end.partition(":")[0].strip().lower()))
        for line in diagram.splitlines()
        if "-->" in line and "[*]" not in line
        for start, end in [(part.strip() for part in line.split("-->"))]
    }
    assert drawn == {(start, end) for start, ends in TRANSITIONS.items() for end in ends}


def test_a_job_goes_from_its_slot_to_its_response():
    job = execution()
    states = [job.state]
    for step in (Execution.begin, Execution.begin_response, Execution.end):
        step(job)
        states.append(job.state)
    assert states == [WAITING, RUNNING, RESPONDING, ENDED]


def test_a_response_that_cannot_be_sent_does_not_change_the_state():
    job = execution()
    job.begin()
    job.begin_response()
    job.leave_response()
    assert job.state is RESPONDING
    job.fail_response()
    assert job.state is RETURNED
    job.begin_response()
    assert job.cancel()
    job.fail_response()
    assert job.state is CANCELLING


def test_a_job_is_cancelled_once():
    job = execution()
    assert job.cancel()
    assert not job.cancel()
    assert (job.state, job.cancelled) == (CANCELLING, True)


def test_a_second_response_is_a_wrong_transition():
    job = execution()
    job.begin_response()
    with pytest.raises(AssertionError):
        job.begin_response()
    job.end()
    with pytest.raises(AssertionError):
        job.begin_response()


@given(
    before=st.lists(st.sampled_from(STEPS), max_size=4),
    between=st.lists(st.sampled_from(STEPS), max_size=4),
    after=st.lists(st.sampled_from(STEPS), max_size=4),
)
def test_every_event_while_a_handler_runs_is_a_transition(before, between, after):
    job = execution()
    for step in (*before, Execution.begin, *between, Execution.leave_response, *after):
        was_ended, was_cancelled = job.ended, job.cancelled
        step(job)
        assert job.ended or not was_ended
        assert job.cancelled or not was_cancelled
        assert job.is_open == (job.state not in (RESPONDING, ENDED))


async def test_a_handler_that_cleans_up_is_not_cancelled_again_when_its_worker_stops(
    job_harness: JobHarness,
):
    class Careful(BaseWorker):
        job_cancel_grace = 60.0

        def __init__(self) -> None:
            super().__init__("careful")
            self.started, self.cleaning = asyncio.Event(), asyncio.Event()
            self.release, self.cleaned = asyncio.Event(), asyncio.Event()

        @job(name="wait")
        async def wait_for_ever(self, message: BusJobRequestMessage) -> None:
            try:
                self.started.set()
                await asyncio.Event().wait()
            finally:
                self.cleaning.set()
                await self.release.wait()
                self.cleaned.set()

    requester, careful = Requester(), Careful()
    await job_harness.start(requester, careful)
    job_id = await requester.request_job("careful", name="wait")
    await careful.started.wait()
    await requester.cancel_job_group(job_id)
    await careful.cleaning.wait()
    stopping = asyncio.create_task(careful.stop())
    await job_harness.settle()
    careful.release.set()
    await stopping
    assert careful.cleaned.is_set()
