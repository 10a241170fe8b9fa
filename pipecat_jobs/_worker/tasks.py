"""The tasks of a Pipecat worker, which may have no runner yet."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from loguru import logger
from pipecat.workers.base_worker import BaseWorker

from pipecat_jobs._protocol.tasks import deferred

Result = TypeVar("Result")

#: The event loop keeps only weak references to its tasks.
_unmanaged: set[asyncio.Task[Any]] = set()


def start_task(
    worker: BaseWorker, coroutine: Coroutine[Any, Any, Result], name: str
) -> asyncio.Task[Result]:
    """Start a task of a worker, whether or not a runner has set the worker up.

    Jobs are asked, and have to end, while the runner starts or before it runs, when the worker has
    no task manager and its own ``create_task()`` raises.
    """
    coroutine = deferred(coroutine)
    try:
        _ = worker.task_manager
    except Exception:
        # Pipecat has no other way to ask, and raises a bare Exception.
        return _start_unmanaged(coroutine, f"{worker}::{name}")
    return worker.create_task(coroutine, name)


def _start_unmanaged(coroutine: Coroutine[Any, Any, Result], name: str) -> asyncio.Task[Result]:
    task = asyncio.create_task(coroutine, name=name)
    _unmanaged.add(task)
    task.add_done_callback(_end_unmanaged)
    return task


def _end_unmanaged(task: asyncio.Task[Any]) -> None:
    _unmanaged.discard(task)
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.opt(exception=error).error(f"{task.get_name()} raised {type(error).__name__}")
