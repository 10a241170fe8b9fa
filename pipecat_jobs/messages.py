"""What may arrive: the job messages of Pipecat's bus, checked before anybody acts on them."""

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
)
from pipecat.pipeline.job_context import JobStatus

#: A worker's answer, at either priority.
ResponseMessage = BusJobResponseMessage | BusJobResponseUrgentMessage
#: A progress update, at either priority.
UpdateMessage = BusJobUpdateMessage | BusJobUpdateUrgentMessage
#: A part of a streamed answer that is not its end.
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

_OPTIONAL: dict[str, type] = {
    "payload": dict,
    "response": dict,
    "update": dict,
    "data": dict,
    "job_name": str,
    "reason": str,
}


def malformed(message: JobMessage) -> str | None:
    """Find what is wrong with a message that came from elsewhere.

    A peer may run another version, and Pipecat's serializer fills a missing field with None.

    Args:
        message: The message as it was delivered.

    Returns:
        What is wrong, in a few words, or None when it can be acted on.
    """
    fields = vars(message)
    for field in ("source", "job_id"):
        value = fields.get(field)
        if not isinstance(value, str) or not value:
            return f"{field} is {value!r}, not a name"
    for field, kind in _OPTIONAL.items():
        value = fields.get(field)
        if value is not None and not isinstance(value, kind):
            return f"{field} is {value!r}, not a {kind.__name__}"
    if isinstance(message, ResponseMessage) and answered_status(message) is None:
        return f"status is {fields.get('status')!r}, not a JobStatus"
    return None


def answered_status(message: ResponseMessage) -> JobStatus | None:
    """Read an answer's status, which arrives as plain text from another process.

    Args:
        message: The answer.

    Returns:
        The status, or None when it is none that Pipecat knows.
    """
    try:
        return JobStatus(message.status)
    except ValueError:
        return None
