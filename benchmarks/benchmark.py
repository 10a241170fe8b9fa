"""What a benchmark is, and what it finds."""

import math
import statistics
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

Work: TypeAlias = Callable[[], Awaitable[None]]
"""Something that takes time."""


@dataclass(frozen=True)
class Spread:
    """How the samples of one quantity are spread.

    Attributes:
        count: How many samples there are.
        median: The middle one.
        p99: The smallest that 99 in 100 do not exceed; of fewer than 100 samples, the largest.
        minimum: The smallest.
        maximum: The largest.
    """

    count: int
    median: float
    p99: float
    minimum: float
    maximum: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Self:
        """Describe samples.

        Args:
            samples: At least one, in any order.

        Returns:
            Their spread.

        Raises:
            ValueError: If there is no sample.
        """
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
    """One quantity, measured on one subject.

    Attributes:
        quantity: What was measured, such as ``"time until the answer"``.
        subject: Whose it is, such as ``"pipecat-jobs"``.
        unit: What it is counted in, such as ``"ms"``.
        spread: What came out.
        workers: How many workers are on the bus, where that varies.
    """

    quantity: str
    subject: str
    unit: str
    spread: Spread
    workers: int | None = None


@dataclass(frozen=True)
class Benchmark:
    """One row of ``python -m benchmarks``.

    Attributes:
        name: What to call it on the command line.
        title: What it measures, in one line.
        method: How, for whoever reads the figures: what is counted from where to where, and what
            may distort it.
        rounds: How many rounds it takes unless told otherwise.
        run: Measures; gets the number of rounds, at least one.
        ours: Gives our part of it to be profiled, if it is about time: sets up, and yields what
            does the work.
    """

    name: str
    title: str
    method: str
    rounds: int
    run: Callable[[int], Coroutine[Any, Any, list[Figure]]]
    ours: Callable[[], AbstractAsyncContextManager[Work]] | None = None
