"""The ``on_job_*`` overrides and event handlers of a Pipecat worker."""

from collections.abc import Callable
from functools import wraps
from inspect import iscoroutinefunction
from typing import Any

from pipecat.workers.base_worker import BaseWorker

from pipecat_jobs._pipecat import has_event_handlers, start_event_handlers
from pipecat_jobs._protocol.hooks import JOB_EVENTS, call_guarded, guarded


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


class WorkerHooks:
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

    def overrides(self, event: str) -> bool:
        """Return whether the worker's class overrides the hook of an event."""
        return event in self._overridden

    def listens(self, event: str) -> bool:
        """Return whether an event handler is registered."""
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

    def has_any(self, event: str) -> bool:
        """Return whether an override or an event handler runs at an event."""
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
