"""What may arrive: the job messages of Pipecat's bus, checked before anybody acts on them."""

from collections.abc import Sequence
from itertools import product
from operator import attrgetter
from types import NoneType
from typing import TypeGuard

from pipecat.bus.messages import (
    BusJobCancelMessage,
    BusJobRequestMessage,
    BusJobResponseMessage,
    BusJobResponseUrgentMessage,
    BusJobStreamDataMessage,
    BusJobStreamEndMessage,
    BusJobStreamStartMessage,
    BusJobUpdateMessage,
    BusJobUpdateRequestMessage,
    BusJobUpdateUrgentMessage,
    BusMessage,
)
from pipecat.pipeline.job_context import JobStatus

from pipecat_jobs._protocol.text import shorten

#: A worker's response, at either priority.
ResponseMessage = BusJobResponseMessage | BusJobResponseUrgentMessage
#: A progress update, at either priority.
UpdateMessage = BusJobUpdateMessage | BusJobUpdateUrgentMessage
#: A part of a streamed response that is not its end.
StreamMessage = BusJobStreamStartMessage | BusJobStreamDataMessage
#: Any job message.
JobMessage = (
    BusJobRequestMessage
    | ResponseMessage
    | UpdateMessage
    | StreamMessage
    | BusJobStreamEndMessage
    | BusJobUpdateRequestMessage
    | BusJobCancelMessage
)

#: What each class of message carries beside who sent it and for which job.
_CARRIED: dict[type[BusMessage], tuple[tuple[str, type], ...]] = {
    BusJobRequestMessage: (("payload", dict), ("job_name", str)),
    BusJobResponseMessage: (("response", dict),),
    BusJobResponseUrgentMessage: (("response", dict),),
    BusJobUpdateMessage: (("update", dict),),
    BusJobUpdateUrgentMessage: (("update", dict),),
    BusJobStreamStartMessage: (("data", dict),),
    BusJobStreamDataMessage: (("data", dict),),
    BusJobStreamEndMessage: (("data", dict),),
    BusJobUpdateRequestMessage: (),
    BusJobCancelMessage: (("reason", str),),
}


_RESPONSES = (BusJobResponseMessage, BusJobResponseUrgentMessage)


class _Form:
    """What a class of message looks like when nothing is wrong with it."""

    __slots__ = ("_read", "_types")

    def __init__(self, kind: type[BusMessage], carried: Sequence[tuple[str, type]]):
        carries: list[tuple[str, tuple[type, ...]]] = [
            (name, (data, NoneType)) for name, data in carried
        ]
        if kind in _RESPONSES:
            carries.append(("status", (JobStatus,)))
        # Read and compared at once: each job checks two messages.
        self._read = attrgetter("source", "job_id", *(name for name, _ in carries))
        self._types = frozenset(product((str,), (str,), *(types for _, types in carries)))

    def fits(self, message: BusMessage) -> bool:
        """Return whether each field has a type that it should have; False means a closer look."""
        try:
            values = self._read(message)
        except AttributeError:
            return False
        return tuple(map(type, values)) in self._types and bool(values[0] and values[1])


_FORMS = {kind: _Form(kind, carried) for kind, carried in _CARRIED.items()}


def is_job_message(message: BusMessage) -> TypeGuard[JobMessage]:
    """Return whether a message is about a job."""
    return type(message) in _CARRIED


def find_problem(message: JobMessage) -> str | None:
    """Find what is wrong with a message that came from elsewhere.

    A peer may run another version, and Pipecat's serializer fills a missing field with None.

    Returns:
        What is wrong, in a few words, or None when it can be acted on.
    """
    return None if _FORMS[type(message)].fits(message) else _describe_problem(message)


def _describe_problem(message: JobMessage) -> str | None:
    for field in ("source", "job_id"):
        name = getattr(message, field, None)
        if not isinstance(name, str) or not name:
            return f"{field} is {shorten(name)}, not a name"
    for field, kind in _CARRIED[type(message)]:
        value = getattr(message, field, None)
        if value is not None and not isinstance(value, kind):
            return f"{field} is {shorten(value)}, not a {kind.__name__}"
    if isinstance(message, _RESPONSES) and response_status(message) is None:
        return f"status is {shorten(getattr(message, 'status', None))}, not a JobStatus"
    return None


def response_status(message: ResponseMessage) -> JobStatus | None:
    """Read a response's status, which arrives as plain text from another process.

    Returns:
        The status, or None when it is none that Pipecat knows.
    """
    if type(message.status) is JobStatus:
        return message.status
    try:
        return JobStatus(message.status)
    except ValueError:
        return None
