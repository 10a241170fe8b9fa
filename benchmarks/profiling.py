"""Profiles the work of pipecat-jobs in a benchmark."""

import cProfile
import io
import pstats
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from benchmarks.benchmark import Work

#: How many functions are shown.
_SHOWN = 25


async def profile(ours: Callable[[], AbstractAsyncContextManager[Work]]) -> str:
    """Return a table of the functions that take the most time."""
    profiler = cProfile.Profile()
    async with ours() as work:
        await work()
        profiler.enable()
        await work()
        profiler.disable()
    text = io.StringIO()
    stats = pstats.Stats(profiler, stream=text).strip_dirs()
    for order in ("tottime", "cumtime"):
        stats.sort_stats(order).print_stats(_SHOWN)
    return text.getvalue()
