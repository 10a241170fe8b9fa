"""The primitive of the requesting half: one job at one worker."""

import asyncio
from collections.abc import Awaitable, Callable, Generator, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, TypeAlias, TypedDict

from pipecat_jobs._requester.attempts import Attempt, Attempts
from pipecat_jobs.outcomes import (
    CancelReason,
    ErrorDetails,
    JobData,
    JobOutcome,
    JobRefusal,
    OutcomeStatus,
)
from pipecat_jobs.steering import SteerOutcome

if TYPE_CHECKING:
    from pipecat_jobs._requester.exchange import Exchange

#: Cancels a job at one worker: takes the job's id, the worker's name and a reason.
CancelAt: TypeAlias = Callable[[str, str, str], Awaitable[None]]
#: Steers a job at one worker.
SteerAt: TypeAlias = Callable[["JobHandle", JobData], Awaitable[SteerOutcome]]


class OutcomeFacts(TypedDict, total=False):
    """The fields of a :class:`~pipecat_jobs.JobOutcome` beside worker, status and times."""

    response: JobData | None
    error: ErrorDetails | None
    reason: str | None
    cancel_reason: CancelReason | None
    refusal: JobRefusal | None
    held_by: str | None


def _record(
    worker: str,
    status: OutcomeStatus,
    facts: OutcomeFacts,
    *,
    waited: float,
    ran: float,
    attempts: tuple[JobOutcome, ...] = (),
) -> JobOutcome:
    """Make an outcome in one step; its constructor takes a call for each field that is frozen."""
    outcome = object.__new__(JobOutcome)
    vars(outcome).update(
        facts, worker=worker, status=status, waited=waited, ran=ran, attempts=attempts
    )
    return outcome


class HandleState(StrEnum):
    """How far a job is for its requester.

    The diagram in ``docs/explanation/jobs.md`` shows the transitions.
    """

    #: Its request has not been sent: its worker is not ready.
    UNSENT = "unsent"
    #: Its request was sent, and its worker owes a response.
    OPEN = "open"
    #: No attempt at it is open, and another one is to begin.
    WAITING = "waiting"
    #: It has an outcome, but its worker owes a response and has to be cancelled.
    ABANDONED = "abandoned"
    #: It has an outcome, and its worker owes nothing or has been cancelled.
    SETTLED = "settled"


# Each job reads them several times, and reading a member from its enum is slow on Python 3.11.
_UNSENT, _OPEN, _WAITING, _ABANDONED, _SETTLED = HandleState

#: The states that may follow each.
TRANSITIONS: dict[HandleState, frozenset[HandleState]] = {
    _UNSENT: frozenset({_OPEN, _SETTLED}),
    _OPEN: frozenset({_WAITING, _ABANDONED, _SETTLED}),
    _WAITING: frozenset({_OPEN, _SETTLED}),
    _ABANDONED: frozenset({_SETTLED}),
    _SETTLED: frozenset(),
}


#: Why an attempt is cancelled beside which another one has completed.
OTHER_ATTEMPT = "not needed: another attempt has completed"


class JobHandle:
    """One job at one worker, from the call to its outcome.

    A call has one for each worker that it asks. Awaiting it gives the outcome and never raises a
    ``JobError``: what the outcomes mean for the call is for its policy to say. It may take several
    attempts, each with a request of its own; it has one outcome all the same.
    """

    __slots__ = (
        "_asked_at",
        "_cancel",
        "_ended",
        "_sent_at",
        "_steer",
        "attempts",
        "exchange",
        "job_id",
        "outcome",
        "state",
        "worker",
    )

    def __init__(
        self,
        job_id: str,
        worker: str,
        asked_at: float,
        cancel: CancelAt,
        steer: SteerAt,
        attempts: Attempts | None = None,
    ):
        self.job_id = job_id
        self.worker = worker
        self.state = _UNSENT
        self.outcome: JobOutcome | None = None
        #: The attempts at it; None if there is one at most, whose id is the job's.
        self.attempts = attempts
        #: What was said about it meanwhile; None while nothing was.
        self.exchange: Exchange | None = None
        self._asked_at = asked_at
        self._sent_at: float | None = None
        self._cancel = cancel
        self._steer = steer
        self._ended: asyncio.Event | None = None

    @property
    def asked_at(self) -> float:
        """When it was asked, by the clock of the event loop."""
        return self._asked_at

    def awaits(self, attempt_id: str) -> bool:
        """Return whether a response to an attempt counts. The id is the job's or an attempt's."""
        return self.state is _OPEN and (self.attempts is None or attempt_id in self.attempts.open)

    def owes_response(self, attempt_id: str) -> bool:
        """Return whether its worker has neither responded to an attempt nor been cancelled."""
        return (self.state is _OPEN or self.state is _ABANDONED) and (
            self.attempts is None or attempt_id in self.attempts.open
        )

    @property
    def open_ids(self) -> Sequence[str]:
        """The ids of the attempts that are open."""
        if self.state is not _OPEN and self.state is not _ABANDONED:
            return ()
        return (self.job_id,) if self.attempts is None else tuple(self.attempts.open)

    @property
    def was_sent(self) -> bool:
        """Whether its request was sent."""
        return self._sent_at is not None

    def mark_sent(self, now: float) -> str:
        """Note that its request is being sent, and give the id that the request carries."""
        if self.attempts is None:
            self._move(_OPEN)
            self._sent_at = now
            return self.job_id
        if self.state is not _OPEN:
            self._move(_OPEN)
        if self._sent_at is None:
            self._sent_at = now
        return self.attempts.begin(self.job_id, now)

    def end_attempt(
        self, attempt: Attempt, now: float, status: OutcomeStatus, facts: OutcomeFacts
    ) -> JobOutcome:
        """Record the outcome of an attempt that does not decide about the job."""
        attempt.outcome = outcome = _record(
            self.worker,
            status,
            facts,
            waited=attempt.sent_at - self._asked_at,
            ran=now - attempt.sent_at,
        )
        return outcome

    def wait_for_next(self) -> None:
        """Note that another attempt is to begin."""
        self._move(_WAITING)

    def settle(self, now: float, status: OutcomeStatus, facts: OutcomeFacts) -> JobOutcome:
        """Record an outcome after which the worker owes nothing but what is not needed."""
        if self.attempts is None or not self.attempts.open:
            return self._end(_SETTLED, now, status, facts)
        not_needed = OutcomeFacts(reason=OTHER_ATTEMPT, cancel_reason=CancelReason.NOT_NEEDED)
        for attempt in self.attempts.open.values():
            self.end_attempt(attempt, now, OutcomeStatus.CANCELLED, not_needed)
        return self._end(_ABANDONED, now, status, facts)

    def abandon(self, now: float, status: OutcomeStatus, facts: OutcomeFacts) -> JobOutcome:
        """Record an outcome that the worker does not know of."""
        if self.state is not _OPEN:
            return self._end(_SETTLED, now, status, facts)
        if self.attempts is not None:
            *others, last = self.attempts.open.values()
            for attempt in others:
                self.end_attempt(attempt, now, status, facts)
            self.attempts.made.remove(last)
        return self._end(_ABANDONED, now, status, facts)

    def release(self) -> Sequence[str]:
        """Note that the worker of an abandoned job is being cancelled; give the ids to cancel."""
        ids = self.open_ids
        self._move(_SETTLED)
        return ids

    def _end(
        self, state: HandleState, now: float, status: OutcomeStatus, facts: OutcomeFacts
    ) -> JobOutcome:
        assert self.outcome is None, self.outcome
        self._move(state)
        sent_at = now if self._sent_at is None else self._sent_at
        self.outcome = outcome = _record(
            self.worker,
            status,
            facts,
            waited=sent_at - self._asked_at,
            ran=now - sent_at,
            attempts=() if self.attempts is None else self.attempts.finish(),
        )
        if self._ended is not None:
            self._ended.set()
        if self.exchange is not None:
            self.exchange.end(outcome)
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

    async def send(self, data: JobData) -> SteerOutcome:
        """Steer the job at this worker, and wait until it is known what became of that."""
        return await self._steer(self, data)
