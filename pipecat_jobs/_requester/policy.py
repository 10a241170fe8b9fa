"""What the outcomes of a call's jobs mean for the call."""

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from pipecat_jobs.outcomes import JobOutcome
from pipecat_jobs.params import CheckedParams


class Verdict(Enum):
    """How a call stands."""

    #: Outcomes are missing that may decide it.
    OPEN = "open"
    #: It has completed; jobs without an outcome are not needed any more.
    SUCCEEDED = "succeeded"
    #: It has failed; jobs without an outcome are cancelled.
    FAILED = "failed"


# Each job reads them several times, and reading a member from its enum is slow on Python 3.11.
OPEN, SUCCEEDED, FAILED = Verdict


class Policy(Protocol):
    """Decides how a call stands, each time one of its jobs has ended."""

    def judge(self, latest: JobOutcome, completed: int, pending: int) -> Verdict:
        """Judge the call.

        Args:
            latest: The outcome that has just been recorded.
            completed: How many jobs have completed, this one included.
            pending: How many jobs have no outcome.
        """
        ...


@dataclass(frozen=True, slots=True)
class WaitForAll:
    """The call ends when every job has ended, or with the first that does not complete."""

    cancel_on_error: bool = True

    def judge(self, latest: JobOutcome, completed: int, pending: int) -> Verdict:
        """Judge the call."""
        if self.cancel_on_error and not latest.completed:
            return FAILED
        return OPEN if pending else SUCCEEDED


@dataclass(frozen=True, slots=True)
class WaitForSome:
    """The call ends when so many jobs have completed, or when too few are left that can."""

    need: int

    def judge(self, latest: JobOutcome, completed: int, pending: int) -> Verdict:
        """Judge the call."""
        if completed >= self.need:
            return SUCCEEDED
        return OPEN if completed + pending >= self.need else FAILED


@dataclass(frozen=True, slots=True)
class WaitForFirst:
    """The call ends when one job has completed, or when another policy ends it."""

    otherwise: Policy

    def judge(self, latest: JobOutcome, completed: int, pending: int) -> Verdict:
        """Judge the call."""
        return SUCCEEDED if completed else self.otherwise.judge(latest, completed, pending)


#: The policy of ``cancel_on_error=True``, and that of False.
ALL_COMPLETE, ALL_END = WaitForAll(), WaitForAll(cancel_on_error=False)


def choose_policy(params: CheckedParams) -> Policy:
    """Choose what decides about a call from its beginning."""
    need = params.need
    if need == "all":
        return ALL_COMPLETE if params.cancel_on_error else ALL_END
    return WaitForSome(1 if need == "first" else need)


def choose_partial_policy(params: CheckedParams) -> Policy:
    """Choose what decides about a call once its ``partial_after`` has passed."""
    if params.need == "all":
        return WaitForFirst(choose_policy(params))
    return WaitForSome(1)
