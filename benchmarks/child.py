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

#: How many measurements run at once, which changes times, but not memory.
_AT_ONCE = 2

Measured: TypeAlias = dict[tuple[str, str], float]
"""The measured values, by quantity and unit."""

Measure: TypeAlias = Callable[[], Coroutine[Any, Any, Measured]]
"""Measures; must be picklable."""


def log_errors_only() -> None:
    """Keep Pipecat from logging every frame, which would be measured as well."""
    logger.remove()
    logger.add(sys.stderr, level="ERROR")


def fresh_process() -> Executor:
    """Make an executor for one call in a new process."""
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, mp_context=spawn, initializer=log_errors_only)


async def measure_in_children(
    measures: Sequence[tuple[Subject, Measure]], rounds: int
) -> list[Figure]:
    """Measure, each time in a process and an event loop of its own, and sort by quantity."""
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
    """Return the resident memory of this process without garbage, in megabytes."""
    gc.collect()
    return psutil.Process().memory_info().rss / 2**20
