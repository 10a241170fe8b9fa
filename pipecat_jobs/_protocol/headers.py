"""The headers of a job, which travel with the request message.

Pipecat's message has no field for them. This is the only module that reads or writes the attribute
of the message that holds them.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self, TypeAlias, cast

from pipecat.bus.messages import BusJobRequestMessage

from pipecat_jobs._protocol.flow import StreamWindow

#: Finds the window of a stream by the name of the worker that streams.
FindWindow: TypeAlias = Callable[[str], StreamWindow | None]

_ATTRIBUTE = "pipecat_jobs_headers"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobHeaders:
    """The data beside the payload of a request. :func:`job_headers` reads it from the message.

    A bus within one process and :class:`~pipecat_jobs.bus.redis.RedisStreamsBus` carry all fields.
    Pipecat's network buses and its WebSocket proxies carry none of them: there the worker reads the
    defaults.

    Parameters:
        attempt: Number of times that the job may have been begun, including this time; at least 1.
            It counts the attempts of ``retry`` and ``hedge_after``, and those of a bus that begins
            a job again after it has lost a process.
        run_once: Whether the job is lost with the process that runs it. When False, a bus that
            spans processes begins it again in another process.
        affinity: The key of the jobs that belong in one process, from the requester's
            ``affinity=``; None when it gave no key.
        moved: Whether earlier jobs of the same affinity ran in another process.
        trace_context: The trace of the job, in the form that a tracing library writes into the
            headers of a request, e.g. ``{"traceparent": "00-..."}`` of `W3C Trace Context
            <https://www.w3.org/TR/trace-context/>`_; None when no interceptor has set it.
        time_left: Seconds that were left of the requester's ``timeout`` when it sent the request;
            None without a timeout. The worker receives the request a little later.
        find_window: Limits the number of unread chunks of a stream; this package sets it.
        takes_questions: Whether the requester can answer questions of the handler; this package
            sets it.
        beside: The id of another open attempt at the same job; this package sets it for
            ``hedge_after``. A bus that spans processes avoids the process of that attempt, and a
            handler with ``@job(key=...)`` does not begin beside it.

    Example::

        from dataclasses import replace


        class Trace(JobInterceptor):
            async def ask(self, call, proceed):
                trace = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
                await proceed(replace(call, headers=replace(call.headers, trace_context=trace)))
    """

    attempt: int = 1
    run_once: bool = False
    affinity: str | None = None
    moved: bool = False
    trace_context: Mapping[str, str] | None = field(default=None, hash=False)
    time_left: float | None = field(default=None, compare=False)
    find_window: FindWindow | None = field(default=None, repr=False, compare=False)
    beside: str | None = field(default=None, repr=False, compare=False)
    takes_questions: bool = field(default=True, repr=False, compare=False)

    def __deepcopy__(self, memo: object) -> Self:
        # A copy of a request waits for the same window as the original.
        return self


class PlannedHeaders(NamedTuple):
    """The headers of a request that nothing has read.

    A bus within one process and most handlers read none, and making them takes longer than this.
    """

    run_once: bool
    affinity: str | None
    time_left: float | None
    find_window: FindWindow

    def __deepcopy__(self, memo: object) -> Self:
        return self


_DEFAULTS = JobHeaders(takes_questions=False)
_KINDS = (JobHeaders, PlannedHeaders)


def job_headers(message: BusJobRequestMessage) -> JobHeaders:
    """Read the headers of a job's request.

    Args:
        message: The argument of the handler.

    Returns:
        The headers; the defaults if the request came without headers.

    Example::

        class Importer(BaseWorker):
            @job(name="import")
            async def import_file(self, message):
                headers = job_headers(message)
                return {"again": headers.attempt > 1, "belongs_to": headers.affinity}
    """
    headers = _read(message)
    if isinstance(headers, PlannedHeaders):
        headers = JobHeaders(**headers._asdict())
        set_headers(message, headers)
    return headers


def _read(message: BusJobRequestMessage) -> JobHeaders | PlannedHeaders:
    headers = getattr(message, _ATTRIBUTE, None)
    return headers if isinstance(headers, _KINDS) else _DEFAULTS


def set_headers(message: BusJobRequestMessage, headers: JobHeaders | PlannedHeaders) -> None:
    """Replace the headers of a request."""
    setattr(message, _ATTRIBUTE, headers)


def find_time_left(message: BusJobRequestMessage) -> float | None:
    """Find the header ``time_left`` of a request."""
    return _read(message).time_left


def find_window(message: BusJobRequestMessage) -> StreamWindow | None:
    """Find the window that a stream for a request has to keep to; None without a limit."""
    find = _read(message).find_window
    return find(message.target or "") if find is not None else None


def takes_questions(message: BusJobRequestMessage) -> bool:
    """Return whether the requester is of this package, and its request came with everything."""
    headers = getattr(message, _ATTRIBUTE, None)
    return isinstance(headers, PlannedHeaders) or (
        isinstance(headers, JobHeaders) and headers.takes_questions
    )


def encode_headers(headers: JobHeaders) -> bytes:
    """Encode the fields that the requester set as one line of JSON, without the defaults."""
    fields: dict[str, object] = {}
    if headers.attempt > 1:
        fields["attempt"] = headers.attempt
    if headers.run_once:
        fields["run_once"] = True
    if headers.affinity is not None:
        fields["affinity"] = headers.affinity
    if headers.trace_context is not None:
        fields["trace_context"] = dict(headers.trace_context)
    if headers.time_left is not None:
        fields["time_left"] = headers.time_left
    if headers.beside is not None:
        fields["beside"] = headers.beside
    if headers.takes_questions:
        fields["questions"] = True
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


def decode_headers(line: bytes) -> JobHeaders:
    """Decode a line of :func:`encode_headers`; raise ValueError for any other line.

    Unknown fields are ignored, so that a later release can add some.
    """
    decoded: object = json.loads(line)
    if not isinstance(decoded, dict):
        raise ValueError("the headers are not a JSON object")
    fields = cast("dict[str, Any]", decoded)
    affinity, trace = fields.get("affinity"), fields.get("trace_context")
    if not isinstance(affinity, str | None):
        raise ValueError("the header 'affinity' is not a string")
    beside = fields.get("beside")
    if not isinstance(beside, str | None):
        raise ValueError("the header 'beside' is not a string")
    if trace is not None and not _is_trace_context(trace):
        raise ValueError("the header 'trace_context' is not an object of strings")
    time_left = fields.get("time_left")
    if time_left is not None and not _is_number(time_left):
        raise ValueError("the header 'time_left' is not a number")
    attempt = fields.get("attempt", 1)
    if not isinstance(attempt, int) or isinstance(attempt, bool) or attempt < 1:
        raise ValueError("the header 'attempt' is not a whole number from 1 up")
    return JobHeaders(
        attempt=attempt,
        run_once=fields.get("run_once") is True,
        affinity=affinity,
        trace_context=trace,
        time_left=time_left,
        beside=beside,
        takes_questions=fields.get("questions") is True,
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_trace_context(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(item, str) for item in cast("dict[object, object]", value).values()
    )


def job_attempt(message: BusJobRequestMessage) -> int:
    """Return how many times a job may have been begun, including this time.

    Args:
        message: The argument of the handler.

    Returns:
        1 for the first time. It is larger when a process was lost while it ran the job, and this
        process runs the job again; when the requester retries a job that may have begun; and for
        the second attempt of ``hedge_after``, which may run beside the first.

    Example::

        class Importer(BaseWorker):
            @job(name="import")
            async def import_file(self, message):
                if job_attempt(message) > 1:
                    ...  # remove the rows that an earlier attempt has written
                return {"imported": message.payload["file"]}
    """
    return job_headers(message).attempt


def job_moved(message: BusJobRequestMessage) -> bool:
    """Return whether the earlier jobs of the same affinity ran in another process.

    When several processes have a worker with a ``job_affinity``, the jobs of one requester, or the
    jobs with the same ``affinity=``, run in one process. When that process is gone, or has no free
    slot and the affinity is ``"prefer"``, a job runs in another process. The worker there does not
    have the earlier jobs in its memory.

    Args:
        message: The argument of the handler.

    Returns:
        True for the first job in the new process. False for the first job of an affinity, for later
        jobs in the new process, and on a bus within one process.

    Example::

        class Tutor(BaseWorker):
            job_affinity = "requester"

            @job(name="explain")
            async def explain(self, message):
                if job_moved(message):
                    ...  # load the lesson from a database
                return {"text": "As I said before ..."}
    """
    return job_headers(message).moved
