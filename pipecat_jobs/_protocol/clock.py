"""The clock of jobs, and how it relates to the time of day."""

import asyncio
import time


def now() -> float:
    """Return the event loop's time; outside of one, that of the clock a loop has by default."""
    try:
        return asyncio.get_running_loop().time()
    except RuntimeError:
        return time.monotonic()


def find_epoch() -> float:
    """Return the seconds to add to a time of this clock to get seconds since the epoch."""
    return time.time() - now()
