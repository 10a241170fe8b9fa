"""The open jobs of a worker: what it asked of others, and what others asked of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from pipecat_jobs.outcomes import JobData


class OpenJobState(StrEnum):
    """How far an open job is.

    Attributes:
        UNREADY: The worker of the job is not ready, so the request was not sent.
        SENT: The request was sent. The requester does not know whether the handler has begun.
        RETRYING: The last attempt has ended, and the requester waits until the next one may begin.
        QUEUED: The job waits at its worker for its key or for a free slot.
        RUNNING: The handler runs, or has returned and other code of the worker responds later.
        WAITING_FOR_INPUT: The handler has asked its requester a question, and waits for the answer.
        CANCELLING: The job was cancelled, and its handler cleans up.
        RESPONDING: The response is being sent.
    """

    UNREADY = "unready"
    SENT = "sent"
    RETRYING = "retrying"
    QUEUED = "queued"
    RUNNING = "running"
    WAITING_FOR_INPUT = "waiting_for_input"
    CANCELLING = "cancelling"
    RESPONDING = "responding"


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenJob:
    """An open job at one worker, as it was when ``open_jobs`` was read.

    Parameters:
        id: The job's id. The jobs of a group have the same id.
        role: "asked" at the worker that asked for the job, "held" at the worker that does it.
        name: The name of the job, or None for a job of ``on_job_request``.
        requester: Name of the worker that asked for it.
        worker: Name of the worker that it was asked of.
        state: How far it is.
        since: When it was asked, or when its request arrived, in seconds since the epoch
            (``time.time()``).
        deadline: When its time is over, in seconds since the epoch; None without a deadline.
        label: The requester's title for people; None at the worker that holds the job.
        last_update: The data of the worker's latest update, or None.
        key: The value of the handler's ``key=`` field at the worker that holds the job, a tuple for
            several fields; None for a handler without ``key=``.
        metadata: What the requester gave as ``metadata=``; empty at the worker that holds the job.
        cancellable: Whether ``request_cancel_job_group()`` and the LLM may cancel it.

    Example::

        for open_job in self.open_jobs:
            print(open_job.label, open_job.worker, open_job.state)
    """

    id: str
    role: Literal["asked", "held"]
    name: str | None
    requester: str
    worker: str
    state: OpenJobState
    since: float
    deadline: float | None = None
    label: str | None = None
    last_update: JobData | None = None
    key: object = None
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    cancellable: bool = True

    @property
    def title(self) -> str:
        """What to call the job when talking to people: its label, its name, or its id."""
        return self.label or self.name or self.id


class OpenJobs(tuple[OpenJob, ...]):
    """The open jobs of a worker, the oldest first."""

    def find(self, text: str) -> "OpenJobs":
        """Find jobs by their title, or by the beginning of their id.

        Args:
            text: A title, in capital or small letters, or the first characters of an id. The title
                of a job is its label, or its name if it has no label.

        Returns:
            The jobs with that title; if there are none, the jobs whose id begins with the text. An
            empty text finds none.

        Example::

            for open_job in self.open_jobs.find("order 7"):
                await self.cancel_job_group(open_job.id, reason="the guest changed their mind")
        """
        wanted = text.strip().casefold()
        titled = [job for job in self if wanted and job.title.casefold() == wanted]
        return OpenJobs(
            titled or [job for job in self if wanted and job.id.casefold().startswith(wanted)]
        )
