"""How a job ended: the status, the response or the error, and how long it took."""

import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

#: A payload, a response or an update.
JobData = dict[str, Any]


class OutcomeStatus(StrEnum):
    """How a job ended for one worker.

    The first four are what a worker can respond, and equal the member of the same name in
    Pipecat's :class:`~pipecat.pipeline.job_context.JobStatus`. The last two are what the
    requester concludes when no response came.

    Parameters:
        COMPLETED: The worker responded with success.
        FAILED: The worker could not do the job, for a reason that it states.
        ERROR: The handler raised, or the worker has no handler for this job.
        CANCELLED: The requester cancelled the job, or the worker stopped or cancelled it.
        TIMED_OUT: The deadline passed first.
        LOST: The worker went away without a response.
    """

    COMPLETED = "completed"
    FAILED = "failed"
    ERROR = "error"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    LOST = "lost"


class CancelReason(StrEnum):
    """Who ended a job before it had its answer, and why.

    Parameters:
        REQUESTER_CANCELLED: The requester: it left the job's block, its task was cancelled, or it
            called ``cancel_job_group()``.
        REQUESTER_STOPPED: The worker that asked has stopped.
        DEADLINE: The job's deadline has passed.
        GROUP_FAILED: Another worker of the group did not complete.
        WORKER_STOPPED: The worker that was asked has stopped.
        INTERRUPTED: The LLM turn that was to answer was interrupted, e.g. by a user who spoke.
        HANDLER_CANCELLED: The handler's task was cancelled by code of the worker's own.
        NOT_NEEDED: The group has completed without this worker's response.
    """

    REQUESTER_CANCELLED = "requester_cancelled"
    REQUESTER_STOPPED = "requester_stopped"
    DEADLINE = "deadline"
    GROUP_FAILED = "group_failed"
    WORKER_STOPPED = "worker_stopped"
    INTERRUPTED = "interrupted"
    HANDLER_CANCELLED = "handler_cancelled"
    NOT_NEEDED = "not_needed"


class JobRefusal(StrEnum):
    """Why a worker has not begun a job. None of its handlers has run.

    Parameters:
        NO_HANDLER: It has no handler for a job of this name.
        INACTIVE: It is inactive, and takes no jobs meanwhile.
        ID_IN_USE: Another requester has an open job of the same id there.
        ID_USED: The requester has had a job of the same id there.
    """

    NO_HANDLER = "no_handler"
    INACTIVE = "inactive"
    ID_IN_USE = "id_in_use"
    ID_USED = "id_used"


#: Characters of what an exception says, and of its traceback, that an answer carries: an error must
#: not become too large to be told.
_MOST_MESSAGE, _MOST_TRACEBACK = 4_000, 16_000


class JobToolError(Exception):
    """A failure whose text an LLM may read and tell the user: "no such booking".

    Raise it in a job's handler, whose job ends as FAILED, in a function with ``@job_tool``, or in a
    ``tool_call()`` block.
    The text of any other exception is kept from the LLM, because it may hold what is not for the
    user: a connection string, a file's path, another customer's name.

    Example::

        class Desk(BaseWorker):
            @job(name="find_booking")
            async def find_booking(self, message):
                raise JobToolError(f"there is no booking {message.payload['number']}")
    """


@dataclass(frozen=True, slots=True)
class ErrorDetails:
    """What went wrong at the worker, as text, so that it survives any bus.

    Parameters:
        type: Name of the exception's class, e.g. ``"ValueError"``; empty when the worker only
            gave a message.
        message: What the exception said.
        traceback: The worker's traceback as text, or None when it sent none.
        for_llm: Whether the message was written for an LLM to read: the exception was a
            :class:`JobToolError`.
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
            Its class name, message and formatted traceback; of long ones the middle is left out.
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
        """Read the details a worker put into its answer.

        Pipecat's own workers answer a failure with ``{"error": "why"}``; workers of this package
        add ``error_type``, ``traceback`` and ``error_for_llm``.

        Args:
            response: The answer's payload, or None.

        Returns:
            The details, or None when the answer names no error.
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
        """Write the details as an answer's payload; the reverse of :meth:`from_response`.

        Returns:
            ``{"error": message, "error_type": type}``, with ``"traceback"`` when there is one, and
            with ``"error_for_llm": True`` when the message was written for an LLM.
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


@dataclass(frozen=True, slots=True)
class JobOutcome:
    """How a job ended for one worker. There is exactly one for each worker asked.

    Parameters:
        worker: Name of the worker that was asked.
        status: How it ended.
        response: What the worker answered, or None when it gave nothing.
        error: What went wrong, when the worker (or the requester) could say.
        reason: Why the job was cancelled, timed out or lost, as a sentence; None otherwise.
        cancel_reason: Who ended the job that was cancelled or timed out, for code to decide on;
            None otherwise, or when a plain Pipecat worker cancelled it.
        refusal: Why the worker did not begin the job, for code to decide on; None when a handler
            has begun, or when the worker does not say.
        waited: Seconds from the call until the request went out: the wait for the worker to be
            ready. All of it, when the request never went out.
        ran: Seconds from the request going out until the end; 0.0 when it never went out.
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

    @property
    def completed(self) -> bool:
        """Whether the worker answered with success."""
        return self.status is OutcomeStatus.COMPLETED

    @property
    def cause(self) -> str:
        """Why it did not complete, in one line; the status alone when no cause is known."""
        if self.error is not None:
            return str(self.error)
        if self.reason is not None:
            return self.reason
        if self.response and not self.completed:
            return f"{self.status}, answering {self.response!r}"
        return str(self.status)
