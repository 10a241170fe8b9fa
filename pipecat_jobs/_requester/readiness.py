"""Waiting for workers that have not started yet."""

import asyncio
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from pipecat.registry import WorkerRegistry
from pipecat.registry.types import WorkerReadyData

from pipecat_jobs._pipecat import unwatch


@runtime_checkable
class StartableBus(Protocol):
    """A bus that says whether messages can be sent, and if not, why."""

    async def until_started(self) -> None:
        """Wait until the bus has started, or raise what kept it from starting."""
        ...

    def problem(self) -> str | None:
        """Say why no message can be sent now, or None."""
        ...


async def until_ready(registry: WorkerRegistry, names: Sequence[str]) -> None:
    """Wait until workers have registered, and leave no watch behind."""
    missing = set(names)
    everyone = asyncio.Event()

    async def ready(data: WorkerReadyData) -> None:
        missing.discard(data.worker_name)
        if not missing:
            everyone.set()

    try:
        for name in names:
            await registry.watch(name, ready)
        await everyone.wait()
    finally:
        for name in names:
            unwatch(registry, name, ready)
