"""Calling what a bot builder hangs on a job: ``on_job_*`` overrides and event handlers.

Whatever they do, a job's outcome is decided without them: what they raise is logged with its
traceback, and they never run on the task that brings the worker its messages.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from functools import wraps
from inspect import iscoroutinefunction
from typing import Any

from pipecat.workers.base_worker import BaseWorker

from pipecat_jobs._pipecat import has_event_handlers, start_event_handlers
from pipecat_jobs._protocol.tasks import RunningTask, log_raised, start_task

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
    """Run a bot builder's code; log what it raises, whatever that is."""
    task = RunningTask()
    try:
        await call()
    except BaseException as error:
        task.survive(error)
        _log_raised_by(where, error)


def call_guarded(where: str, call: Callable[[], object]) -> None:
    """Call a bot builder's function that does not wait; log what it raises, whatever that is."""
    try:
        call()
    except BaseException as error:
        RunningTask().survive(error)
        _log_raised_by(where, error)


def _log_raised_by(where: str, error: BaseException) -> None:
    log_raised(f"{where} raised {type(error).__name__}; going on", error)


def logging_traceback(event: str, handler: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap an event handler so that its exception is logged with its traceback.

    Pipecat logs the message alone.
    """
    where = f"event handler {getattr(handler, '__qualname__', handler)} of {event}"

    if iscoroutinefunction(handler):

        @wraps(handler)
        async def in_task(*args: object) -> None:
            await guarded(where, lambda: handler(*args))

        return in_task

    @wraps(handler)
    def in_place(*args: object) -> None:
        call_guarded(where, lambda: handler(*args))

    return in_place


class Hooks:
    """The overrides and event handlers of one worker."""

    def __init__(self, worker: BaseWorker):
        self._worker = worker
        self._overridden = frozenset(
            event
            for event in JOB_EVENTS
            if getattr(type(worker), event) is not getattr(BaseWorker, event)
        )
        self._wrapped: dict[tuple[str, Callable[..., Any]], Callable[..., Any]] = {}
        # Asked for with every message, so that they are not looked up every time.
        self._listened: set[str] = set()
        for event in (*JOB_EVENTS, "on_bus_message"):
            self.note_listeners(event)

    def overrides(self, *events: str) -> bool:
        """Tell whether the worker's class overrides one of these hooks."""
        return not self._overridden.isdisjoint(events)

    def listens(self, event: str) -> bool:
        """Tell whether an event handler is registered."""
        return event in self._listened

    def note_listeners(self, event: str) -> None:
        """Note that an event handler was added or removed."""
        if has_event_handlers(self._worker, event):
            self._listened.add(event)
        else:
            self._listened.discard(event)

    def wrapped(self, event: str, handler: Callable[..., Any]) -> Callable[..., Any]:
        """Give what to register in place of an event handler."""
        if event not in JOB_EVENTS:
            return handler
        wrapped = self._wrapped[event, handler] = logging_traceback(event, handler)
        return wrapped

    def unwrapped(self, event: str, handler: Callable[..., Any]) -> Callable[..., Any]:
        """Give what was registered in place of an event handler, and forget it."""
        return self._wrapped.pop((event, handler), handler)

    def hears(self, event: str) -> bool:
        """Tell whether an override or an event handler runs at an event."""
        return event in self._overridden or event in self._listened

    def announce(self, event: str, message: object) -> None:
        """Fire the event handlers alone, each in a task of its own."""
        if event in self._listened:
            start_event_handlers(self._worker, event, message)

    async def fire(self, event: str, message: object) -> None:
        """Call the override, then the event handlers."""
        if event in self._overridden:
            hook = getattr(self._worker, event)
            await guarded(f"{event}() of worker '{self._worker.name}'", lambda: hook(message))
        self.announce(event, message)


class Steps:
    """Runs a job's hooks one after the other, in a task of their own.

    Each job has its own, so that its hooks fire in order and hold up no other job.
    """

    __slots__ = ("_waiting", "_worker", "busy")

    def __init__(self, worker: BaseWorker, *, held: bool = False):
        self.busy = held
        """Whether a step that is added now has to wait for others."""
        self._worker = worker
        self._waiting: deque[Step] | None = None

    @property
    def last(self) -> bool:
        """Whether nothing waits behind the step that is running."""
        return not self._waiting

    def run(self, step: Step) -> None:
        """Run a step after those that were added before."""
        if self._waiting is None:
            self._waiting = deque()
        self._waiting.append(step)
        if not self.busy:
            self._begin(self._waiting)

    def release(self) -> None:
        """Let the steps that were held run, and those to come."""
        self.busy = False
        if self._waiting:
            self._begin(self._waiting)

    def _begin(self, waiting: deque[Step]) -> None:
        self.busy = True
        start_task(self._worker, self._drain(waiting), "job_hooks")

    async def _drain(self, waiting: deque[Step]) -> None:
        try:
            while waiting:
                await waiting.popleft()()
        finally:
            self.busy = False
