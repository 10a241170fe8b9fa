"""One budget of seconds for a whole job."""

import asyncio
import math
from collections.abc import Callable

from pipecat_jobs.errors import InvalidJobError, InvalidJobTypeError


def check_timeout(timeout: object) -> float | None:
    """Refuse a timeout that is not a number of seconds from zero up.

    Args:
        timeout: What the caller gave.

    Returns:
        The seconds, or None for no deadline (also for infinity).

    Raises:
        InvalidJobTypeError: If it is no number.
        InvalidJobError: If it is negative or NaN.
    """
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise InvalidJobTypeError(
            f"timeout is {timeout!r}; give seconds as a number, or None for no deadline"
        )
    if math.isnan(timeout) or timeout < 0:
        raise InvalidJobError(f"timeout is {timeout!r}; give zero or more seconds")
    return None if math.isinf(timeout) else float(timeout)


class Deadline:
    """Calls back once when a job's time is over, unless it is cleared first.

    A timer of the event loop, not a task: a job that ends in time leaves nothing to cancel.

    Args:
        timeout: Seconds from now, or None for never.
        expired: Called when they have passed.
    """

    __slots__ = ("_timer", "timeout")

    def __init__(self, timeout: float | None, expired: Callable[[], None]):
        self.timeout = timeout
        self._timer: asyncio.TimerHandle | None = None
        if timeout is not None:
            self._timer = asyncio.get_running_loop().call_later(timeout, expired)

    def clear(self) -> None:
        """Never call back from now on."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
