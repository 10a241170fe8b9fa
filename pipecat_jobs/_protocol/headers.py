"""What travels beside a request message, which has no fields for it.

This is the one module that writes or reads the attribute of the message that holds it.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self, TypeAlias, cast

from pipecat.bus.messages import BusJobRequestMessage

from pipecat_jobs._protocol.flow import StreamWindow

#: Finds the window of a worker's stream by the worker's name.
FindWindow: TypeAlias = Callable[[str], StreamWindow | None]

_ATTRIBUTE = "pipecat_jobs_headers"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobHeaders:
    """What travels beside a job's request. :func:`job_headers` reads it from the message.

    A bus within one process and :class:`~pipecat_jobs.bus.redis.RedisStreamsBus` carry all of it.
    Pipecat's network buses and its WebSocket proxies send the fields of Pipecat's own message
    alone: there the worker reads the defaults.

    Parameters:
        attempt: How many times the job has been begun, this time included; at least 1.
        run_once: Whether the job is lost with the process that runs it, rather than begun again in
            another.
        affinity: The key of the jobs that belong in one process, as the requester gave it; None
            when it gave none.
        moved: Whether earlier jobs of the same affinity ran in another process.
        trace_context: The trace that the job belongs to, as a tracing library writes it into the
            headers of a request, e.g. ``{"traceparent": "00-..."}`` of `W3C Trace Context
            <https://www.w3.org/TR/trace-context/>`_; None when no interceptor has set it.
        time_left: Seconds that were left of the requester's ``timeout`` when it sent the request;
            None without a timeout. The worker receives the request a little later.
        find_window: Limits how far a stream may run ahead of its reader; the package sets it.
    """

    attempt: int = 1
    run_once: bool = False
    affinity: str | None = None
    moved: bool = False
    trace_context: Mapping[str, str] | None = field(default=None, hash=False)
    time_left: float | None = field(default=None, compare=False)
    find_window: FindWindow | None = field(default=None, repr=False, compare=False)

    def __deepcopy__(self, memo: object) -> Self:
        # A copy of a request waits for the same window as the original.
        return self


_DEFAULTS = JobHeaders()


def job_headers(message: BusJobRequestMessage) -> JobHeaders:
    """Read what travels beside a job's request.

    Args:
        message: The request that a handler was called with.

    Returns:
        The headers; the defaults when the request came without any.

    Example::

        class Importer(BaseWorker):
            @job(name="import")
            async def import_file(self, message):
                headers = job_headers(message)
                return {"again": headers.attempt > 1, "belongs_to": headers.affinity}
    """
    headers = getattr(message, _ATTRIBUTE, None)
    return headers if isinstance(headers, JobHeaders) else _DEFAULTS


def set_headers(message: BusJobRequestMessage, headers: JobHeaders) -> None:
    """Replace what travels beside a request."""
    setattr(message, _ATTRIBUTE, headers)


def find_window(message: BusJobRequestMessage) -> StreamWindow | None:
    """Find what a stream that responds to a request has to wait for; None when nothing."""
    find = job_headers(message).find_window
    return find(message.target or "") if find is not None else None


def encode_headers(headers: JobHeaders) -> bytes:
    """Encode what the requester set, as one line of JSON without what has its default."""
    fields: dict[str, object] = {}
    if headers.run_once:
        fields["run_once"] = True
    if headers.affinity is not None:
        fields["affinity"] = headers.affinity
    if headers.trace_context is not None:
        fields["trace_context"] = dict(headers.trace_context)
    if headers.time_left is not None:
        fields["time_left"] = headers.time_left
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


def decode_headers(line: bytes) -> JobHeaders:
    """Decode :func:`encode_headers`; raise ValueError for what it cannot have written.

    Unknown fields are ignored, so that a later release can add some.
    """
    decoded: object = json.loads(line)
    if not isinstance(decoded, dict):
        raise ValueError("the headers are not a JSON object")
    fields = cast("dict[str, Any]", decoded)
    affinity, trace = fields.get("affinity"), fields.get("trace_context")
    if not isinstance(affinity, str | None):
        raise ValueError("the header 'affinity' is not a string")
    if trace is not None and not _is_trace_context(trace):
        raise ValueError("the header 'trace_context' is not an object of strings")
    time_left = fields.get("time_left")
    if time_left is not None and not _is_number(time_left):
        raise ValueError("the header 'time_left' is not a number")
    return JobHeaders(
        run_once=fields.get("run_once") is True,
        affinity=affinity,
        trace_context=trace,
        time_left=time_left,
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_trace_context(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(item, str) for item in cast("dict[object, object]", value).values()
    )


def job_attempt(message: BusJobRequestMessage) -> int:
    """Tell how many times a job has been begun, this time included.

    Args:
        message: The request that a handler was called with.

    Returns:
        1, or more when a process was lost while it ran the job and this one runs it again.

    Example::

        class Importer(BaseWorker):
            @job(name="import")
            async def import_file(self, message):
                if job_attempt(message) > 1:
                    ...  # what an earlier attempt has left
                return {"imported": message.payload["file"]}
    """
    return job_headers(message).attempt


def job_moved(message: BusJobRequestMessage) -> bool:
    """Tell whether a job runs in another process than the jobs it belongs to.

    Where several processes host a worker with a ``job_affinity``, the jobs of one requester, or
    those asked with the same ``affinity``, stay in one process. When that process is gone, or has
    no free slot and the affinity is ``"prefer"``, a job runs elsewhere: what the worker keeps in
    memory of the jobs before is not there.

    Args:
        message: The request that a handler was called with.

    Returns:
        Whether earlier jobs that it belongs to ran in another process. False for the first one, for
        every later one in the new process, and on a bus within one process.

    Example::

        class Tutor(BaseWorker):
            job_affinity = "requester"

            @job(name="explain")
            async def explain(self, message):
                if job_moved(message):
                    ...  # ask for what the lesson was about
                return {"text": "As I said before ..."}
    """
    return job_headers(message).moved
