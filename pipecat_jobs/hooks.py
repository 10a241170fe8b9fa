"""Calling what a bot builder hangs on a job: ``on_job_*`` overrides and event handlers.

Whatever they do, a job's outcome is decided without them: what they raise is logged with its
traceback, and they never run on the task that brings the worker its messages where they could
hold it up.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from functools import wraps
from inspect import iscoroutinefunction
from typing import Any

from loguru import logger
from pipecat.workers.base_worker import BaseWorker

from pipecat_jobs._pipecat import call_event_handlers, has_event_handlers

#: The events of a job at the worker that asked for it, each also a method to override.
REQUESTER_EVENTS = (
    "on_job_response",
    "on_job_update",
    "on_job_completed",
    "on_job_error",
    "on_job_stream_start",
    "on_job_stream_data",
    "on_job_stream_end",
)
#: All events of a job, each also a method to override.
JOB_EVENTS = (
    *REQUESTER_EVENTS,
    "on_job_request",
    "on_job_update_requested",
    "on_job_cancelled",
)

Step = Callable[[], Coroutine[Any, Any, None]]


async def guarded(where: str, call: Callable[[], Awaitable[object]]) -> None:
    """Run somebody's code; log what it raises.

    Args:
        where: Whose code it is, for the log.
        call: What to run.

    Raises:
        asyncio.CancelledError: If this task was cancelled, as opposed to the code raising one.
    """
    task = asyncio.current_task()
    cancels = task.cancelling() if task else 0
    try:
        await call()
    except asyncio.CancelledError as error:
        if task is not None and task.cancelling() > cancels:
            raise
        logger.opt(exception=error).error(f"{where} was cancelled from within; going on")
    except Exception as error:
        logger.opt(exception=error).error(f"{where} raised {type(error).__name__}; going on")


def logging_traceback(event: str, handler: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap an event handler so that its exception is logged with its traceback.

    Pipecat logs the message alone.

    Args:
        event: The event it handles.
        handler: The handler, async or not.

    Returns:
        A handler of the same kind that does not raise.
    """
    where = f"event handler {getattr(handler, '__qualname__', handler)} of {event}"

    if iscoroutinefunction(handler):

        @wraps(handler)
        async def in_task(*args: object) -> None:
            await guarded(where, lambda: handler(*args))

        return in_task

    @wraps(handler)
    def in_place(*args: object) -> None:
        try:
            handler(*args)
        except Exception as error:
            logger.opt(exception=error).error(f"{where} raised {type(error).__name__}; going on")

    return in_place


class Hooks:
    """The overrides and event handlers of one worker.

    Args:
        worker: The worker whose hooks these are.
    """

    def __init__(self, worker: BaseWorker):
        self._worker = worker
        self._overridden = frozenset(
            event
            for event in JOB_EVENTS
            if getattr(type(worker), event) is not getattr(BaseWorker, event)
        )

    def overrides(self, *events: str) -> bool:
        """Tell whether the worker's class overrides one of these hooks.

        Args:
            *events: Names of hooks, e.g. ``"on_job_update"``.

        Returns:
            Whether calling them runs a bot builder's code in place.
        """
        return not self._overridden.isdisjoint(events)

    def listens(self, event: str) -> bool:
        """Tell whether an event handler is registered.

        Args:
            event: The event's name.

        Returns:
            Whether anybody would be called.
        """
        return has_event_handlers(self._worker, event)

    async def announce(self, event: str, message: object) -> None:
        """Fire the event handlers alone.

        Args:
            event: The event's name.
            message: What they get.
        """
        await call_event_handlers(self._worker, event, message)

    async def fire(self, event: str, message: object) -> None:
        """Call the override, then the event handlers.

        Args:
            event: The hook's name.
            message: What it gets.
        """
        if event in self._overridden:
            hook = getattr(self._worker, event)
            await guarded(f"{event}() of worker '{self._worker.name}'", lambda: hook(message))
        await call_event_handlers(self._worker, event, message)


class Steps:
    """Does things one after the other, in a task of its own where they may take long.

    Each job has one, so that its hooks fire in order and hold up no other job.

    Args:
        worker: The worker whose task manager runs them.
        in_place: Whether a step may run before :meth:`run` returns, when nothing is ahead of it;
            for a worker without overrides, whose steps wait on no code but ours.
        held: Whether nothing runs before :meth:`release`.
        then: What to do each time all steps are done.
    """

    __slots__ = ("_busy", "_in_place", "_then", "_waiting", "_worker")

    def __init__(
        self,
        worker: BaseWorker,
        *,
        in_place: bool,
        held: bool = False,
        then: Step | None = None,
    ):
        self._worker = worker
        self._waiting: deque[Step] = deque()
        self._busy = held
        self._in_place = in_place
        self._then = then

    async def run(self, step: Step) -> None:
        """Do a step after those before it.

        Args:
            step: Makes the coroutine to run.
        """
        self._waiting.append(step)
        if self._busy:
            return
        self._busy = True
        if self._in_place:
            await self._drain()
        else:
            self._worker.create_task(self._drain(), "job_hooks")

    def release(self) -> None:
        """Let the steps that were held run, in a task, and those to come."""
        if self._waiting:
            self._worker.create_task(self._drain(), "job_hooks")
        else:
            self._busy = False

    async def _drain(self) -> None:
        try:
            while self._waiting:
                await self._waiting.popleft()()
                if not self._waiting and self._then is not None:
                    await self._then()
        finally:
            self._busy = False
