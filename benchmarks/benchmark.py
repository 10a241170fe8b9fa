"""A benchmark and its figures."""

import math
import statistics
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

Work: TypeAlias = Callable[[], Awaitable[None]]
"""The work whose time is measured."""


@dataclass(frozen=True)
class Spread:
    """Describes the samples of one quantity."""

    count: int
    median: float
    #: The smallest sample that 99 % do not exceed; of fewer than 100 samples, the largest.
    p99: float
    minimum: float
    maximum: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Self:
        """Describe samples, of which there must be at least one."""
        if not samples:
            raise ValueError("a spread needs at least one sample; none was measured")
        ordered = sorted(samples)
        return cls(
            count=len(ordered),
            median=statistics.median(ordered),
            p99=ordered[math.ceil(0.99 * len(ordered)) - 1],
            minimum=ordered[0],
            maximum=ordered[-1],
        )


@dataclass(frozen=True)
class Figure:
    """One quantity, measured on one subject."""

    #: For example ``"one job, 2 workers"``.
    quantity: str
    #: For example ``"ours on RoutedBus"``.
    subject: str
    #: For example ``"ms"``.
    unit: str
    spread: Spread
    #: How many workers are on the bus, if the number varies.
    workers: int | None = None


@dataclass(frozen=True)
class Benchmark:
    """One benchmark of ``python -m benchmarks``."""

    #: Its name on the command line.
    name: str
    #: What it measures, in one line.
    title: str
    #: How it measures, for the reader of the figures: what is counted, and what may distort it.
    method: str
    #: How many rounds it takes by default.
    rounds: int
    #: Measures, for a number of rounds, at least one.
    run: Callable[[int], Coroutine[Any, Any, list[Figure]]]
    #: Sets up the work of pipecat-jobs and yields it, to be profiled; None if it is not about time.
    ours: Callable[[], AbstractAsyncContextManager[Work]] | None = None
