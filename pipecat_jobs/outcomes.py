"""The outcome of a job: its status, its response or its error, and its times."""

import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

#: A payload, a response or an update.
JobData = dict[str, Any]


class OutcomeStatus(StrEnum):
    """How a job ended for one worker.

    A worker can respond with the first four, which equal the members of the same names in
    Pipecat's :class:`~pipecat.pipeline.job_context.JobStatus`. The requester sets the last two
    itself, when no response came.

    Attributes:
        COMPLETED: The worker responded with success.
        FAILED: The worker could not do the job, for a reason that it gives.
        ERROR: The handler raised, the worker has no handler for this job, or the request could not
            be sent.
        CANCELLED: The requester cancelled the job, or the worker stopped or cancelled it.
        TIMED_OUT: The deadline passed before the response.
        LOST: The worker ended, or its process or its connection was lost, before the response.

    Example::

        async with self.job_group("wiki", "news", name="research", cancel_on_error=False) as group:
            pass

        for name, outcome in group.outcomes.items():
            if outcome.status is OutcomeStatus.LOST:
                print(f"{name} is gone: {outcome.reason}")
    """

    COMPLETED = "completed"
    FAILED = "failed"
    ERROR = "error"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    LOST = "lost"


# Each job reads it several times, and reading a member from its enum is slow on Python 3.11.
_COMPLETED = OutcomeStatus.COMPLETED


class CancelReason(StrEnum):
    """Why a job was cancelled or timed out, for code to decide on.

    Attributes:
        REQUESTER_CANCELLED: The requester left the job's block with an exception, the task that
            waits for the job was cancelled, or it called ``cancel_job_group()``.
        REQUESTER_STOPPED: The requester has stopped.
        DEADLINE: The job's deadline has passed, or its ``ready_within``.
        GROUP_FAILED: Another worker of the group did not complete.
        WORKER_STOPPED: The worker of the job has stopped.
        INTERRUPTED: The LLM turn of the job was interrupted, e.g. by a user who spoke.
        HANDLER_CANCELLED: Code of the worker cancelled the handler's task.
        REPLACED: A later job of the same key has replaced it: ``@job(on_busy="replace")``.
        NOT_NEEDED: The group has completed without this worker's response, as its ``need`` or
            ``partial_after`` says, or because its loop over ``as_completed()`` was left.

    Example::

        try:
            await self.job("researcher", name="research", timeout=30)
        except JobCancelledError as error:
            if error.outcomes["researcher"].cancel_reason is CancelReason.INTERRUPTED:
                print("the user has spoken; ask again later")
    """

    REQUESTER_CANCELLED = "requester_cancelled"
    REQUESTER_STOPPED = "requester_stopped"
    DEADLINE = "deadline"
    GROUP_FAILED = "group_failed"
    WORKER_STOPPED = "worker_stopped"
    INTERRUPTED = "interrupted"
    HANDLER_CANCELLED = "handler_cancelled"
    NOT_NEEDED = "not_needed"
    REPLACED = "replaced"


class JobRefusal(StrEnum):
    """Why a worker refused a job. No handler has begun, so another worker can do the job.

    Attributes:
        NO_HANDLER: The worker has no handler for a job of this name.
        INACTIVE: The worker is inactive, and its class has ``takes_jobs_when_inactive = False``.
        ID_IN_USE: The worker has an open job with the same id from another requester.
        ID_USED: The worker has had a job with the same id from this requester.
        INVALID_PAYLOAD: The payload is not what the handler takes; the error names the field.
        BUSY: Another job of the same key is open: ``@job(on_busy="refuse")``; or it does not take
            the steer: ``@job(on_busy="steer")``.

    Example::

        try:
            await self.job("wiki", name="research")
        except JobError as error:
            if error.outcomes["wiki"].refusal is None:
                raise
            await self.job("news", name="research")
    """

    NO_HANDLER = "no_handler"
    INACTIVE = "inactive"
    ID_IN_USE = "id_in_use"
    ID_USED = "id_used"
    INVALID_PAYLOAD = "invalid_payload"
    BUSY = "busy"


#: Characters of an exception's message and of its traceback in a response. A longer response could
#: be too large for a bus, and the job would then not end.
_MOST_MESSAGE, _MOST_TRACEBACK = 4_000, 16_000


class JobToolError(Exception):
    """A failure whose text an LLM may read and tell the user, e.g. "no such booking".

    Raise it in a job's handler, in a function with ``@job_tool``, or in a ``tool_call()`` block. In
    a handler it ends the job as FAILED. The LLM never reads the text of any other exception,
    because it may have private data: a connection string, a file's path, another customer's name.

    Example::

        class Desk(BaseWorker):
            @job(name="find_booking")
            async def find_booking(self, message):
                raise JobToolError(f"there is no booking {message.payload['number']}")
    """


@dataclass(frozen=True, slots=True)
class ErrorDetails:
    """An exception of a worker as text, which every bus can carry.

    Parameters:
        type: Name of the exception's class, e.g. ``"ValueError"``; empty when the worker only
            gave a message. It is for people: class names of two modules can be equal.
        message: The exception's message.
        traceback: The worker's traceback as text, or None when the worker did not send it.
        for_llm: True if the message was written for an LLM to read: the exception was a
            :class:`JobToolError`.

    Example::

        try:
            await self.job("researcher", name="research")
        except JobError as error:
            details = error.outcomes["researcher"].error
            if details is not None:
                print(details.type, details.message, details.traceback)
    """

    type: str
    message: str
    traceback: str | None = None
    for_llm: bool = False

    @classmethod
    def from_exception(cls, error: BaseException) -> "ErrorDetails":
        """Describe an exception, with its traceback.

        Args:
            error: The exception, as it was caught.

        Returns:
            Its class name, message and formatted traceback. From a message of more than 4,000
            characters and a traceback of more than 16,000 the middle is left out.
        """
        text = "".join(traceback.format_exception(error)) if error.__traceback__ else None
        return cls(
            type(error).__name__,
            _shortened(_message_of(error), _MOST_MESSAGE),
            None if text is None else _shortened(text, _MOST_TRACEBACK),
            isinstance(error, JobToolError),
        )

    @classmethod
    def from_response(cls, response: Mapping[str, object] | None) -> "ErrorDetails | None":
        """Read the details from a worker's response.

        Pipecat's own workers report a failure with ``{"error": "why"}``; workers of this package
        add ``error_type``, ``traceback`` and ``error_for_llm``.

        Args:
            response: The data of the response, or None.

        Returns:
            The details, or None when the response has no ``"error"``.
        """
        if not response or response.get("error") is None:
            return None
        kind, trace = response.get("error_type"), response.get("traceback")
        return cls(
            kind if isinstance(kind, str) else "",
            str(response["error"]),
            trace if isinstance(trace, str) else None,
            response.get("error_for_llm") is True,
        )

    def to_response(self) -> JobData:
        """Write the details as the data of a response; the reverse of :meth:`from_response`.

        Returns:
            ``{"error": message, "error_type": type}``, with ``"traceback"`` when there is one, and
            with ``"error_for_llm": True`` when the message was written for an LLM.

        Example::

            details = ErrorDetails("ValueError", "no such topic")
            response = details.to_response()
            assert response == {"error": "no such topic", "error_type": "ValueError"}
            assert ErrorDetails.from_response(response) == details
        """
        response: JobData = {"error": self.message, "error_type": self.type}
        if self.for_llm:
            response["error_for_llm"] = True
        if self.traceback is not None:
            response["traceback"] = self.traceback
        return response

    def __str__(self) -> str:
        return f"{self.type}: {self.message}" if self.type else self.message


def _message_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as unprintable:
        return f"no message: its __str__() raised {type(unprintable).__name__}"


def _shortened(text: str, most: int) -> str:
    left_out = len(text) - most
    if left_out <= 0:
        return text
    half = most // 2
    return f"{text[:half]} [{left_out:,} characters left out] {text[-half:]}"


@dataclass(frozen=True)
class JobOutcome:
    """How a job ended for one worker. Each worker of a job has exactly one outcome.

    Parameters:
        worker: Name of the worker.
        status: How the job ended.
        response: The data of the worker's response; None when there was no response, or it had no
            data.
        error: The exception of the worker or of the requester; None when there was none, or when
            it is not known.
        reason: Why the job was cancelled, timed out or lost, as text for people; None otherwise.
        cancel_reason: Why the job was cancelled or timed out, for code to decide on; None
            otherwise, or when a plain Pipecat worker cancelled it.
        refusal: Why the worker refused the job, for code to decide on; None when a handler has
            begun, or when the worker does not state it.
        held_by: The id of the open job of the same key because of which the worker refused the
            job (``JobRefusal.BUSY``); None otherwise.
        waited: Seconds from the call until the request was sent: the wait for the worker to be
            ready. If the request was never sent, seconds from the call until the end. With several
            attempts, until the request of the first one.
        ran: Seconds from the request until the end; 0.0 if the request was never sent. With several
            attempts, from the request of the first one.
        attempts: The outcomes of the other attempts at the job, in the order in which they began:
            those that failed before, and the one that was not needed because of ``hedge_after``.
            Their ``waited`` and ``ran`` are of the attempt. Empty when there was one attempt.

    Example::

        async with self.job("researcher", name="research", payload={"topic": "AI"}) as j:
            pass

        outcome = j.outcome
        assert outcome.completed and outcome.status is OutcomeStatus.COMPLETED
        print(f"ready after {outcome.waited:.3f} s, done {outcome.ran:.3f} s later")
    """

    worker: str
    status: OutcomeStatus
    response: JobData | None = None
    error: ErrorDetails | None = None
    reason: str | None = None
    waited: float = 0.0
    ran: float = 0.0
    cancel_reason: CancelReason | None = None
    refusal: JobRefusal | None = None
    held_by: str | None = None
    attempts: "tuple[JobOutcome, ...]" = ()

    @property
    def completed(self) -> bool:
        """Whether the worker responded with success."""
        return self.status is _COMPLETED

    @property
    def cause(self) -> str:
        """Why the job did not complete, in one line for people; the status if that is not known."""
        if self.error is not None:
            return str(self.error)
        if self.reason is not None:
            return self.reason
        if self.response and not self.completed:
            return f"{self.status}, with the response {self.response!r}"
        return str(self.status)
