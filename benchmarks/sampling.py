"""Samples of several subjects, taken in turns."""

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

from benchmarks.benchmark import Figure, Spread, Work

#: Turns of the loop after which a bus has handed a message to everybody.
_TURNS = 10


@dataclass(frozen=True, eq=False)
class Series:
    """One quantity of one subject, before it is measured.

    Attributes:
        quantity: What is measured.
        subject: Whose it is.
        sample: Measures once.
        unit: What is counted in.
        workers: How many workers are on the bus, where that varies.
        once: Whether it takes so long that one sample, without a warm-up, is all there is time for.
    """

    quantity: str
    subject: str
    sample: Callable[[], Awaitable[float]]
    unit: str = "ms"
    workers: int | None = None
    once: bool = False


Samples: TypeAlias = dict[Series, list[float]]
"""What was measured, in the order of the rounds."""


async def take_turns(series: Iterable[Series], rounds: int) -> Samples:
    """Sample each series once in every round, so that what disturbs one disturbs the others.

    Args:
        series: What to sample.
        rounds: How often, after a round that is not counted.

    Returns:
        The samples.
    """
    samples: Samples = {each: [] for each in series}
    for each in samples:
        if not each.once:
            await _alone(each)
    # What setting up has left is not the first samples' garbage.
    gc.collect()
    for number in range(rounds):
        for each, taken in samples.items():
            if number == 0 or not each.once:
                taken.append(await _alone(each))
    return samples


async def _alone(series: Series) -> float:
    # A bus that wakes thousands leaves much to the garbage collector, and hands a message to most
    # of them after its answer has come. Neither is the next subject's.
    gc.collect(1)
    sample = await series.sample()
    await settle()
    return sample


async def settle() -> None:
    """Let everything that is under way on a bus arrive."""
    for _ in range(_TURNS):
        await asyncio.sleep(0)


def figures(samples: Samples) -> list[Figure]:
    """Describe samples.

    Args:
        samples: What was measured.

    Returns:
        A figure for each series.
    """
    return [
        Figure(each.quantity, each.subject, each.unit, Spread.of(taken), each.workers)
        for each, taken in samples.items()
    ]


def ratio(quantity: str, samples: Samples, over: Series, under: Series) -> Figure:
    """Compare two series, round by round.

    Args:
        quantity: What is compared.
        samples: What was measured.
        over: The series above the line.
        under: The series below it.

    Returns:
        How many times the one the other is.
    """
    # One that was sampled once was so in the first round.
    pairs = zip(samples[over], samples[under], strict=False)
    subject = over.subject if over.subject == under.subject else f"{over.subject} / {under.subject}"
    return Figure(quantity, subject, "x", Spread.of([one / other for one, other in pairs]))


def timed(work: Work, times: int = 1, *, follows: bool = False) -> Callable[[], Awaitable[float]]:
    """Make a sample of work.

    Args:
        work: What to do.
        times: How often in a row, to be long against the clock and what else goes on.
        follows: Whether the first one, too, follows another and finds what that has left undone.

    Returns:
        Does it, and returns the milliseconds it took each time on the mean.
    """

    async def sample() -> float:
        if follows:
            await work()
        began = time.perf_counter()
        for _ in range(times):
            await work()
        return 1000 * (time.perf_counter() - began) / times

    return sample
