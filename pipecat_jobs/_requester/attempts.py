"""The attempts at a job that may have more than one: when they begin, and which one decides."""

import asyncio
import secrets
from dataclasses import dataclass, field

from pipecat_jobs._protocol.hooks import call_guarded
from pipecat_jobs.outcomes import JobOutcome, JobRefusal, OutcomeStatus
from pipecat_jobs.retry import Retry

#: Refusals after which the same request, with another id or later, can be taken.
_PASSING = frozenset(
    {JobRefusal.INACTIVE, JobRefusal.ID_IN_USE, JobRefusal.ID_USED, JobRefusal.BUSY}
)
#: The ends of an attempt after which another may begin.
_REPEATABLE = frozenset({OutcomeStatus.FAILED, OutcomeStatus.ERROR, OutcomeStatus.LOST})


@dataclass(slots=True, eq=False)
class Attempt:
    """One attempt at a job: one request, with an id of its own."""

    id: str
    sent_at: float
    outcome: JobOutcome | None = None


@dataclass(slots=True, eq=False)
class Attempts:
    """The attempts at one job at one worker."""

    retry: Retry | None
    #: Seconds after which a second attempt begins beside one that is open.
    hedge_after: float | None
    run_once: bool
    #: In the order in which they began; without the attempt whose outcome is the job's.
    made: list[Attempt] = field(default_factory=list)
    #: By id: those whose response the worker owes.
    open: dict[str, Attempt] = field(default_factory=dict)
    #: The id of the attempt whose stream is read.
    streaming: str | None = None
    #: Waits until the next attempt may begin.
    waiting: asyncio.Task[None] | None = None

    @property
    def begun(self) -> int:
        """How many attempts there were in which a handler may have begun."""
        return sum(made.outcome is None or made.outcome.refusal is None for made in self.made)

    @property
    def may_hedge(self) -> bool:
        """Whether a second attempt may begin beside the one that is open."""
        return len(self.open) == 1 and self.streaming is None and len(self.made) < self._most

    @property
    def _most(self) -> int:
        return max(
            1 if self.retry is None else self.retry.attempts, 1 if self.hedge_after is None else 2
        )

    def begin(self, job_id: str, now: float) -> str:
        """Add an attempt and give its id: the first has the job's."""
        number = len(self.made) + 1
        attempt_id = job_id if number == 1 else f"{job_id}-{number}-{secrets.token_hex(4)}"
        attempt = Attempt(attempt_id, now)
        self.made.append(attempt)
        self.open[attempt_id] = attempt
        return attempt_id

    def find_wait(self, outcome: JobOutcome, time_left: float | None) -> float | None:
        """Find how many seconds to wait before the next attempt; None if there must be none."""
        if self.retry is None or len(self.made) >= self._most or not self._is_repeated(outcome):
            return None
        wait = compute_wait(self.retry, len(self.made))
        return wait if time_left is None or wait < time_left else None

    def _is_repeated(self, outcome: JobOutcome) -> bool:
        if outcome.status not in _REPEATABLE or (self.run_once and outcome.refusal is None):
            return False
        if outcome.refusal in _PASSING:
            return True
        if outcome.status is OutcomeStatus.LOST and self.streaming is None:
            return True
        assert self.retry is not None
        return _names(self.retry, outcome)

    def finish(self) -> tuple[JobOutcome, ...]:
        """Begin no further attempt, and give the outcomes of those that do not decide."""
        self.stop_waiting()
        return tuple(made.outcome for made in self.made if made.outcome is not None)

    def stop_waiting(self) -> None:
        """Begin no further attempt that waits for its time."""
        waiting, self.waiting = self.waiting, None
        # An attempt that ends as soon as it begins is ended by the task that began it.
        if waiting is not None and waiting is not asyncio.current_task():
            waiting.cancel()


def _names(retry: Retry, outcome: JobOutcome) -> bool:
    on = retry.on
    if not callable(on):
        return (outcome.refusal or outcome.status) in on
    answers: list[object] = []
    call_guarded("Retry.on", lambda: answers.append(on(outcome)))
    return bool(answers and answers[0])


def compute_wait(retry: Retry, made: int) -> float:
    """Compute the seconds to wait before the next attempt, after this many."""
    # Importing it takes longer than a job, and most bots have no retries.
    from tenacity import RetryCallState, Retrying, wait_exponential_jitter

    strategy = wait_exponential_jitter(
        retry.wait_initial, retry.wait_max, jitter=retry.wait_initial
    )
    state = RetryCallState(Retrying(), None, (), {})
    state.attempt_number = made
    return strategy(state)
