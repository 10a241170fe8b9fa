"""One budget of seconds for a whole job."""

import asyncio
import math
from collections.abc import Callable

from pipecat_jobs._protocol.checks import check_number
from pipecat_jobs.errors import InvalidJobError


def check_timeout(timeout: object, name: str = "timeout") -> float | None:
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

    __slots__ = ("_loop", "_timer")

    def __init__(self, timeout: float, expired: Callable[[], None]):
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(timeout, expired)

    @property
    def blocked(self) -> float:
        """Seconds for which the event loop, at the least, did not run when the deadline passed.

        0.0 when it ran, or when the deadline is yet to come.
        """
        late = self._loop.time() - self._timer.when()
        return late if late > _LATE else 0.0

    @property
    def when(self) -> float:
        """When it passes, by the clock of the event loop."""
        return self._timer.when()

    @property
    def left(self) -> float:
        """Seconds until it passes; negative once the event loop is late with it."""
        return self._timer.when() - self._loop.time()

    def clear(self) -> None:
        """Never call back from now on."""
        self._timer.cancel()
