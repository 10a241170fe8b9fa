"""The event handlers of a Pipecat object."""

from pipecat.utils.base_object import BaseObject

# pyright: reportPrivateUsage=false


async def call_event_handlers(subject: BaseObject, event: str, *args: object) -> None:
    """Call the handlers of an event with the object and ``args``, as Pipecat's subclasses do."""
    await subject._call_event_handler(event, *args)


def start_event_handlers(subject: BaseObject, event: str, *args: object) -> None:
    """Call the handlers of an event whose handlers run in tasks, as those of a worker's jobs do.

    Raises RuntimeError if the handlers run in place, where a caller would have to wait for them.
    """
    firing = subject._call_event_handler(event, *args)
    try:
        firing.send(None)
    except StopIteration:
        return
    firing.close()
    raise RuntimeError(f"event {event} of {subject} runs its handlers in place")


def has_event_handlers(subject: BaseObject, event: str) -> bool:
    """Tell whether a handler is registered for an event."""
    registered = subject._event_handlers.get(event)
    return registered is not None and bool(registered.handlers)
