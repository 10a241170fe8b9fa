"""Measurements of memory, each in a fresh process."""

import asyncio
import gc
import multiprocessing
import sys
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from typing import Any, TypeAlias

import psutil
from loguru import logger

from benchmarks.benchmark import Figure, Spread
from benchmarks.subjects import Subject

#: How many run at once. Memory, unlike time, does not suffer from company.
_AT_ONCE = 2

Measured: TypeAlias = dict[tuple[str, str], float]
"""What came out, by quantity and unit."""

Measure: TypeAlias = Callable[[], Coroutine[Any, Any, Measured]]
"""Measures; has to be picklable."""


def log_errors_only() -> None:
    """Keep Pipecat from logging every frame it queues, which would be measured with the rest."""
    logger.remove()
    logger.add(sys.stderr, level="ERROR")


def fresh_process() -> Executor:
    """Make an executor for one call, in a process that has done nothing yet.

    Returns:
        The executor.
    """
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, mp_context=spawn, initializer=log_errors_only)


async def measure_in_children(
    measures: Sequence[tuple[Subject, Measure]], rounds: int
) -> list[Figure]:
    """Measure, each time in a process and an event loop of its own.

    Args:
        measures: How, and whose it is.
        rounds: How often.

    Returns:
        The figures, with one quantity of all subjects side by side.
    """
    turns = [*measures] * rounds
    room = asyncio.Semaphore(_AT_ONCE)
    found = await asyncio.gather(*(_in_child(measure, room) for _, measure in turns))
    samples: dict[tuple[str, str], dict[str, list[float]]] = {}
    for (subject, _), measured in zip(turns, found, strict=True):
        for quantity, value in measured.items():
            samples.setdefault(quantity, {}).setdefault(subject.name, []).append(value)
    return [
        Figure(quantity, subject, unit, Spread.of(taken))
        for (quantity, unit), subjects in samples.items()
        for subject, taken in subjects.items()
    ]


async def _in_child(measure: Measure, room: asyncio.Semaphore) -> Measured:
    async with room:
        with fresh_process() as executor:
            return await asyncio.get_running_loop().run_in_executor(executor, _run, measure)


def _run(measure: Measure) -> Measured:
    return asyncio.run(measure())


def resident() -> float:
    """Tell how much memory this process holds, without its garbage.

    Returns:
        Megabytes.
    """
    gc.collect()
    return psutil.Process().memory_info().rss / 2**20
