"""The primitive of the requesting half: one job at one worker."""

import asyncio
from collections.abc import Awaitable, Callable, Generator
from enum import StrEnum
from typing import TypeAlias, TypedDict

from pipecat_jobs.outcomes import (
    CancelReason,
    ErrorDetails,
    JobData,
    JobOutcome,
    JobRefusal,
    OutcomeStatus,
)

#: Cancels a job at one worker: takes the job's id, the worker's name and a reason.
CancelAt: TypeAlias = Callable[[str, str, str], Awaitable[None]]


class OutcomeFacts(TypedDict, total=False):
    """The fields of a :class:`~pipecat_jobs.JobOutcome` beside worker, status and times."""

    response: JobData | None
    error: ErrorDetails | None
    reason: str | None
    cancel_reason: CancelReason | None
    refusal: JobRefusal | None
    held_by: str | None


class HandleState(StrEnum):
    """How far a job is for its requester. The diagram in ``docs/jobs.md`` shows the transitions."""

    #: Its request has not been sent: its worker is not ready.
    UNSENT = "unsent"
    #: Its request was sent, and its worker owes a response.
    OPEN = "open"
    #: It has an outcome, but its worker owes a response and has to be cancelled.
    ABANDONED = "abandoned"
    #: It has an outcome, and its worker owes nothing or has been cancelled.
    SETTLED = "settled"


# Each job reads them several times, and reading a member from its enum is slow on Python 3.11.
_UNSENT, _OPEN, _ABANDONED, _SETTLED = HandleState

#: The states that may follow each.
TRANSITIONS: dict[HandleState, frozenset[HandleState]] = {
    _UNSENT: frozenset({_OPEN, _SETTLED}),
    _OPEN: frozenset({_ABANDONED, _SETTLED}),
    _ABANDONED: frozenset({_SETTLED}),
    _SETTLED: frozenset(),
}


class JobHandle:
    """One job at one worker, from the call to its outcome.

    A call has one for each worker that it asks. Awaiting it gives the outcome and never raises a
    ``JobError``: what the outcomes mean for the call is for its policy to say.
    """

    __slots__ = (
        "_asked_at",
        "_cancel",
        "_ended",
        "_sent_at",
        "job_id",
        "outcome",
        "state",
        "worker",
    )

    def __init__(self, job_id: str, worker: str, asked_at: float, cancel: CancelAt):
        self.job_id = job_id
        self.worker = worker
        self.state = _UNSENT
        self.outcome: JobOutcome | None = None
        self._asked_at = asked_at
        self._sent_at: float | None = None
        self._cancel = cancel
        self._ended: asyncio.Event | None = None

    @property
    def asked_at(self) -> float:
        """When it was asked, by the clock of the event loop."""
        return self._asked_at

    @property
    def awaited(self) -> bool:
        """Whether a response from its worker counts."""
        return self.state is _OPEN

    @property
    def owes_response(self) -> bool:
        """Whether its worker was asked, and has neither responded nor been cancelled."""
        return self.state is _OPEN or self.state is _ABANDONED

    @property
    def was_sent(self) -> bool:
        """Whether its request was sent."""
        return self._sent_at is not None

    def mark_sent(self, now: float) -> None:
        """Note that its request is being sent."""
        self._move(_OPEN)
        self._sent_at = now

    def settle(self, now: float, status: OutcomeStatus, facts: OutcomeFacts) -> JobOutcome:
        """Record an outcome after which the worker owes nothing."""
        return self._end(_SETTLED, now, status, facts)

    def abandon(self, now: float, status: OutcomeStatus, facts: OutcomeFacts) -> JobOutcome:
        """Record an outcome that the worker does not know of."""
        state = _ABANDONED if self.state is _OPEN else _SETTLED
        return self._end(state, now, status, facts)

    def release(self) -> None:
        """Note that the worker of an abandoned job is being cancelled."""
        self._move(_SETTLED)

    def _end(
        self, state: HandleState, now: float, status: OutcomeStatus, facts: OutcomeFacts
    ) -> JobOutcome:
        assert self.outcome is None, self.outcome
        self._move(state)
        sent_at = now if self._sent_at is None else self._sent_at
        self.outcome = outcome = JobOutcome(
            self.worker, status, waited=sent_at - self._asked_at, ran=now - sent_at, **facts
        )
        if self._ended is not None:
            self._ended.set()
        return outcome

    def _move(self, state: HandleState) -> None:
        assert state in TRANSITIONS[self.state], (self.state, state)
        self.state = state

    async def wait(self) -> JobOutcome:
        """Wait for the outcome."""
        if self.outcome is None:
            self._ended = self._ended or asyncio.Event()
            await self._ended.wait()
        assert self.outcome is not None
        return self.outcome

    def __await__(self) -> Generator[object, None, JobOutcome]:
        return self.wait().__await__()

    async def cancel(self, reason: str = "cancelled by its requester") -> None:
        """Cancel the job at this worker alone; does nothing when it has an outcome."""
        if self.outcome is None:
            await self._cancel(self.job_id, self.worker, reason)
