"""Takes samples of several subjects in turns."""

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

from benchmarks.benchmark import Figure, Spread, Work

#: Turns of the event loop after which a bus has delivered a message to all subscribers.
_TURNS = 10


@dataclass(frozen=True, eq=False)
class Series:
    """One quantity of one subject, before it is measured."""

    quantity: str
    subject: str
    #: Takes one sample.
    sample: Callable[[], Awaitable[float]]
    unit: str = "ms"
    #: How many workers are on the bus, if the number varies.
    workers: int | None = None
    #: Whether a sample takes so long that only one is taken, without a warm-up.
    once: bool = False


Samples: TypeAlias = dict[Series, list[float]]
"""The samples of each series, in the order of the rounds."""


async def take_turns(series: Iterable[Series], rounds: int) -> Samples:
    """Sample each series once in every round, after a round that is not counted."""
    # In turns, so that a disturbance of the machine affects all series and not only one.
    samples: Samples = {each: [] for each in series}
    for each in samples:
        if not each.once:
            await _sample(each)
    # The first samples must not include the collection of garbage from setting up, and a full
    # collection within one sample must not visit each module and worker: it takes 100 ms.
    gc.collect()
    gc.freeze()
    try:
        for number in range(rounds):
            for each, taken in samples.items():
                if number == 0 or not each.once:
                    taken.append(await _sample(each))
    finally:
        gc.unfreeze()
    return samples


async def _sample(series: Series) -> float:
    # A bus with thousands of subscribers leaves much garbage, and delivers a message to most of
    # them after the response has come. Neither must count for the next subject.
    gc.collect(1)
    sample = await series.sample()
    await settle()
    return sample


async def settle() -> None:
    """Wait until all messages on a bus are delivered."""
    for _ in range(_TURNS):
        await asyncio.sleep(0)


def figures(samples: Samples) -> list[Figure]:
    """Make a figure of each series."""
    return [
        Figure(each.quantity, each.subject, each.unit, Spread.of(taken), each.workers)
        for each, taken in samples.items()
    ]


def ratio(quantity: str, samples: Samples, over: Series, under: Series) -> Figure:
    """Divide the samples of one series by those of another, round by round."""
    # A series that was sampled once was sampled in the first round.
    pairs = zip(samples[over], samples[under], strict=False)
    subject = over.subject if over.subject == under.subject else f"{over.subject} / {under.subject}"
    return Figure(quantity, subject, "x", Spread.of([one / other for one, other in pairs]))


def timed(work: Work, times: int = 1, *, follows: bool = False) -> Callable[[], Awaitable[float]]:
    """Make a function that does work several times, and returns the mean in milliseconds."""

    async def sample() -> float:
        if follows:
            # Not counted, but it leaves work to the next one, like each of the others.
            await work()
        began = time.perf_counter()
        for _ in range(times):
            await work()
        return 1000 * (time.perf_counter() - began) / times

    return sample
