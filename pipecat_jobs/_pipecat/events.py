"""The event handlers of a Pipecat object."""

import asyncio

from pipecat.utils.base_object import BaseObject

# pyright: reportPrivateUsage=false


async def call_event_handlers(subject: BaseObject, event: str, *args: object) -> None:
    """Call the handlers of an event with the object and ``args``, as Pipecat's subclasses do."""
    await subject._call_event_handler(event, *args)


def start_event_handlers(subject: BaseObject, event: str, *args: object) -> None:
    """Call the handlers of an event whose handlers run in tasks, as those of a worker's jobs do.

    It does what ``BaseObject._call_event_handler()`` does, which has to be awaited although it
    awaits nothing for such an event. It raises RuntimeError if the handlers run in place, where the
    caller would have to wait for them.
    """
    registered = subject._event_handlers.get(event)
    if registered is None:
        return
    if registered.is_sync:
        raise RuntimeError(f"event {event} of {subject} runs its handlers in place")
    for handler in registered.handlers:
        task = asyncio.create_task(subject._run_handler(event, handler, *args))
        subject._event_tasks.add((event, task))
        task.add_done_callback(subject._event_task_finished)


def has_event_handlers(subject: BaseObject, event: str) -> bool:
    """Return whether a handler is registered for an event."""
    registered = subject._event_handlers.get(event)
    return registered is not None and bool(registered.handlers)
