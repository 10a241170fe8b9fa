"""One budget of seconds for a whole job."""

import asyncio
import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar

from pipecat_jobs._protocol.checks import check_number
from pipecat_jobs.errors import InvalidJobError


def check_timeout(name: str, timeout: object) -> float | None:
    """Refuse a timeout that is not a number of seconds from zero up.

    Returns:
        The seconds, or None for no deadline (also for infinity).
    """
    if timeout is None:
        return None
    seconds = check_number(name, timeout, "seconds as a number, or None for no deadline")
    if seconds >= 0:
        return None if seconds == math.inf else seconds
    raise InvalidJobError(f"{name} is {timeout!r}; give zero or more seconds")


#: Seconds by which a busy event loop may be late. One that is later was blocked.
_LATE = 0.1


class Deadline:
    """Calls back once when a job's time is over, unless it is cleared first.

    A timer of the event loop, not a task: a job that ends in time leaves nothing to cancel.
    """

    __slots__ = ("_loop", "_timer", "when")

    def __init__(self, timeout: float, expired: Callable[[], None]):
        self._loop = loop = asyncio.get_running_loop()
        #: When it passes, by the clock of the event loop.
        self.when = loop.time() + timeout
        self._timer = loop.call_at(self.when, expired)

    @property
    def blocked(self) -> float:
        """Seconds for which the event loop, at the least, did not run when the deadline passed.

        0.0 when it ran, or when the deadline is yet to come.
        """
        late = self._loop.time() - self.when
        return late if late > _LATE else 0.0

    @property
    def left(self) -> float:
        """Seconds until it passes; negative once the event loop is late with it."""
        return self.when - self._loop.time()

    def clear(self) -> None:
        """Never call back from now on."""
        self._timer.cancel()


class JobDeadline:
    """The deadline of work whose jobs inherit it: of a handler, or of the call of a tool.

    It is closed when the work ends. A task that the work has started may go on, and the jobs that
    it requests from then on have the deadline of the work around it, if there is one.
    """

    __slots__ = ("_at", "_clock", "_outer")

    def __init__(self, at: float, clock: Callable[[], float], outer: "JobDeadline | None" = None):
        self._at: float | None = at
        self._clock = clock
        self._outer = outer

    @property
    def left(self) -> float | None:
        """Seconds until it passes, at least 0.0; None when nothing bounds the work any more."""
        if self._at is not None:
            return max(0.0, self._at - self._clock())
        return None if self._outer is None else self._outer.left

    def close(self) -> None:
        """Note that the work has ended."""
        self._at = None


#: The deadline that jobs inherit which are requested now.
current_deadline: ContextVar[JobDeadline | None] = ContextVar("pipecat_jobs_deadline", default=None)


@contextmanager
def inheriting(seconds: float | None) -> Generator[None, None, None]:
    """Have the jobs that are requested in the block inherit a deadline; None for no other one."""
    if seconds is None or seconds == math.inf:
        yield
        return
    # Not reset: a block that is closed by the garbage collector ends in another context.
    outer, clock = current_deadline.get(), asyncio.get_running_loop().time
    left = outer.left if outer is not None else None
    at = clock() + (seconds if left is None else min(seconds, left))
    deadline = JobDeadline(at, clock, outer)
    current_deadline.set(deadline)
    try:
        yield
    finally:
        deadline.close()


def job_deadline() -> float | None:
    """Return how many seconds are left for the running handler, or the running call of a tool.

    A job that the handler requests inherits the deadline: it has at most this time, whatever its
    own ``timeout``.

    Returns:
        The seconds until the deadline of the handler's job, or of the tool's call; 0.0 once it has
        passed. None without a deadline: outside of a handler, after the job has ended, when the
        requester gave no ``timeout``, and on a network bus of Pipecat's own, which does not carry
        it.

    Example::

        class Researcher(BaseWorker):
            @job(name="research")
            async def research(self, message):
                left = job_deadline()
                thorough = left is None or left > 10
                return {"sources": 20 if thorough else 3}
    """
    deadline = current_deadline.get()
    return None if deadline is None else deadline.left
