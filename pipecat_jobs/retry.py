"""Which jobs that did not complete are asked for again, and when."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from inspect import iscoroutinefunction
from typing import TypeAlias, cast

from pipecat_jobs._protocol.checks import check_count, check_delay
from pipecat_jobs._protocol.text import shorten
from pipecat_jobs.errors import InvalidJobError, InvalidJobTypeError
from pipecat_jobs.outcomes import JobOutcome, JobRefusal, OutcomeStatus

#: The ends after which a job is asked for again: their names, or a function of the outcome.
RetryOn: TypeAlias = Collection[OutcomeStatus | JobRefusal] | Callable[[JobOutcome], bool]

#: The ends that are final, whatever a retry says.
_FINAL = frozenset({OutcomeStatus.COMPLETED, OutcomeStatus.CANCELLED, OutcomeStatus.TIMED_OUT})
_WANTED = (
    "a set such as {OutcomeStatus.ERROR, JobRefusal.NO_HANDLER}, or a function that takes a "
    "JobOutcome and returns a bool"
)


@dataclass(frozen=True, kw_only=True)
class Retry:
    """Ask for a job again when it did not complete. It is the value of ``retry=``.

    A job is asked for again when that is safe:

    - The worker refused it, no handler has begun, and another request can have another answer:
      ``JobRefusal.INACTIVE``, ``BUSY``, ``ID_IN_USE`` and ``ID_USED``.
    - It was lost with its worker. It may have begun, so this is not done for a ``run_once`` job, or
      for a job that has streamed.
    - It ended in a way that ``on`` names. A ``run_once`` job is only asked for again when a worker
      refused it.

    A job that was cancelled, or whose deadline has passed, is never asked for again. All attempts
    and the waits between them share the job's ``timeout``: no attempt begins after it. The waits
    are those of `tenacity.wait_exponential_jitter
    <https://tenacity.readthedocs.io/en/latest/api.html#tenacity.wait.wait_exponential_jitter>`_.

    Parameters:
        attempts: Number of attempts at most, the first one included.
        on: The ends after which the job is asked for again, beside the safe ones: a set of
            :class:`~pipecat_jobs.OutcomeStatus` and :class:`~pipecat_jobs.JobRefusal` members, or a
            function that takes the :class:`~pipecat_jobs.JobOutcome` of the attempt and returns
            whether to go on. A status in the set does not stand for refusals with that status.
        wait_initial: Seconds to wait before the second attempt, doubled before each further one. A
            random part of at most ``wait_initial`` seconds is added to each wait. With 0 there are
            no waits, which is of use in tests.
        wait_max: The longest wait before an attempt, in seconds.

    Raises:
        InvalidJobError: If a value cannot be used.

    Example::

        retry = Retry(attempts=3, on={OutcomeStatus.ERROR})
        async with self.job("researcher", name="research", timeout=10, retry=retry) as j:
            pass

        print(j.response, len(j.outcome.attempts))
    """

    attempts: int = 3
    on: RetryOn = frozenset()
    wait_initial: float = 0.1
    wait_max: float = 5.0

    def __post_init__(self) -> None:
        check_count("Retry.attempts", self.attempts, "the number of attempts, the first included")
        object.__setattr__(self, "on", _check_on(self.on))
        check_delay("Retry.wait_initial", self.wait_initial)
        check_delay("Retry.wait_max", self.wait_max)
        if self.wait_max < self.wait_initial:
            raise InvalidJobError(
                f"Retry.wait_max is {self.wait_max!r}, less than wait_initial="
                f"{self.wait_initial!r}; give at least as many seconds"
            )


def _check_on(value: object) -> RetryOn:
    # A class or a coroutine function would be taken for a function that always says yes.
    if callable(value) and not isinstance(value, type) and not iscoroutinefunction(value):
        return cast("RetryOn", value)
    if isinstance(value, str | type) or not isinstance(value, Collection):
        raise InvalidJobTypeError(f"Retry.on is {shorten(value)}; give {_WANTED}")
    named: set[OutcomeStatus | JobRefusal] = set()
    for member in value:
        if not isinstance(member, OutcomeStatus | JobRefusal):
            raise InvalidJobTypeError(f"Retry.on has {shorten(member)}; give {_WANTED}")
        if member in _FINAL:
            raise InvalidJobError(
                f"Retry.on has {member!r}, after which no job is asked for again; leave it out"
            )
        named.add(member)
    return frozenset(named)
