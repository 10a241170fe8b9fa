"""The open jobs of this process: those that it requested, and those that it does."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from pipecat.bus.messages import (
    BusJobCancelMessage,
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

from pipecat_jobs._protocol.flow import StreamWindow
from pipecat_jobs._protocol.recent import Expiring, Recent
from pipecat_jobs.bus._distributed.engine import Call
from pipecat_jobs.outcomes import JobData

#: How many chunks of one stream may wait to be sent. A worker that has more must wait.
_UNSENT = 64
#: How many jobs are remembered after they have ended, so that a repeated request is recognized.
_MOST_SEEN = 4096
#: Messages from a requester to the worker of a job.
REQUESTER_MESSAGES = (BusJobCancelMessage, BusJobUpdateRequestMessage)
#: Messages with which a worker ends a job.
FINAL_MESSAGES = (BusJobResponseMessage, BusJobResponseUrgentMessage, BusJobStreamEndMessage)
#: Messages from the worker of a job to its requester.
WORKER_MESSAGES = (
    *FINAL_MESSAGES,
    BusJobUpdateMessage,
    BusJobUpdateUrgentMessage,
    BusJobStreamStartMessage,
    BusJobStreamDataMessage,
)


@dataclass(frozen=True, slots=True)
class JobKey:
    """Identifies one job at one worker, on both sides."""

    requester: str
    worker: str
    job_id: str

    @classmethod
    def of(cls, message: BusMessage) -> "JobKey | None":
        """Return the key of the job that a message is about, or None if it is about no job."""
        # A peer may have sent anything as the id.
        if not message.target or not isinstance(getattr(message, "job_id", None), str):
            return None
        if isinstance(message, WORKER_MESSAGES):
            return cls(message.target, message.source, message.job_id)
        if isinstance(message, REQUESTER_MESSAGES):
            return cls(message.source, message.target, message.job_id)
        return None

    def make_response(self, status: JobStatus, response: JobData | None) -> BusJobResponseMessage:
        """Make a response that ends the job, with the worker as its source."""
        return BusJobResponseMessage(
            source=self.worker,
            target=self.requester,
            job_id=self.job_id,
            status=status,
            response=response,
        )


@dataclass(slots=True, eq=False)
class RequestedJob:
    """A job that this process has requested."""

    key: JobKey
    #: The call that requests it.
    request: Call
    #: Whether the server has taken the request.
    sent: bool = False
    #: Whether the requester has cancelled it.
    cancelled: bool = False
    #: Grows when it is requested again because the server may not have taken the request.
    attempt: int = 1
    #: Finds the flow control of its stream.
    window: Callable[[], StreamWindow | None] = lambda: None
    #: The attempt whose stream was instructed to wait, or 0.
    paused_attempt: int = 0


@dataclass(slots=True, eq=False)
class HeldJob:
    """A job that this process does for a requester in another process."""

    key: JobKey
    #: The name that the server has for it.
    ref: str
    #: The attempt that this process makes.
    attempt: int
    #: The flow control of its stream.
    window: StreamWindow = field(default_factory=lambda: StreamWindow(_UNSENT))


class OpenJobs:
    """The jobs of this process that cross the server, in both directions."""

    def __init__(self) -> None:
        self._requested: dict[JobKey, RequestedJob] = {}
        self._held: dict[JobKey, HeldJob] = {}
        self._by_ref: dict[str, HeldJob] = {}
        self._seen: Recent[tuple[str, int], None] = Recent(_MOST_SEEN)
        #: Ref and attempt of jobs whose requests must be ignored. Their number is not bounded,
        #: because a job would run if one were dropped.
        self._abandoned: Expiring[tuple[str, int], bool] = Expiring()
        self._was_held: Recent[JobKey, None] = Recent(_MOST_SEEN)
        #: Refs of jobs that have ended in this process, while the server has not confirmed it.
        self._leaving: set[str] = set()
        #: Ref and attempt of cancelled jobs whose requests have not been read yet.
        self._cancelled_unread: set[tuple[str, int]] = set()
        self._free = asyncio.Event()
        self._free.set()

    # -- requested ---------------------------------------------------------------------------

    def add_requested(self, job: RequestedJob) -> None:
        """Add a job that this process requests."""
        self._requested[job.key] = job

    def find_requested(self, key: JobKey) -> RequestedJob | None:
        """Look up an open job that this process has requested."""
        return self._requested.get(key)

    def settle(self, key: JobKey) -> None:
        """Remove a requested job that has ended."""
        self._requested.pop(key, None)

    def list_requested(self) -> list[RequestedJob]:
        """List the open jobs that this process has requested."""
        return list(self._requested.values())

    def find_numbered(self, numbers: Iterable[str]) -> list[RequestedJob]:
        """Find open requested jobs by the numbers of their calls, given as text."""
        wanted = {int(number) for number in numbers}
        return [job for job in self._requested.values() if job.request.number in wanted]

    # -- held --------------------------------------------------------------------------------

    def hold(self, held: HeldJob) -> None:
        """Add a job that this process takes."""
        self._seen.remember((held.ref, held.attempt), None)
        self._was_held.remember(held.key, None)
        self._held[held.key] = held
        self._by_ref[held.ref] = held
        self._free.clear()

    def abandon(self, ref: str, attempt: int) -> None:
        """Ignore the request of a job if it still arrives, because its requester is gone."""
        self._abandoned.remember((ref, attempt), True)

    def has_seen(self, ref: str, attempt: int) -> bool:
        """Return whether this process has taken an attempt, or its requester abandoned it."""
        attempted = (ref, attempt)
        return attempted in self._seen or self._abandoned.get(attempted) is not None

    def cancel_unread(self, ref: str, attempt: int) -> bool:
        """Remember the cancel of a job, and return whether its request may still arrive."""
        if self.has_seen(ref, attempt):
            return False
        self._cancelled_unread.add((ref, attempt))
        return True

    def take_unread_cancel(self, ref: str, attempt: int) -> bool:
        """Return whether a job was cancelled before its request was read, and forget it."""
        cancelled = (ref, attempt) in self._cancelled_unread
        self._cancelled_unread.discard((ref, attempt))
        return cancelled

    def was_held(self, key: JobKey) -> bool:
        """Return whether this process has taken a job before, under any ref."""
        return key in self._was_held

    def find_held(self, key: JobKey) -> HeldJob | None:
        """Look up an open job that this process does."""
        return self._held.get(key)

    def find_held_by_ref(self, ref: str) -> HeldJob | None:
        """Look up an open job that this process does, by the ref that the server has for it."""
        return self._by_ref.get(ref)

    def list_held(self) -> list[HeldJob]:
        """List the open jobs that this process does."""
        return list(self._by_ref.values())

    def start_leaving(self, ref: str) -> None:
        """Note that the server does not know yet that a job has ended in this process."""
        self._leaving.add(ref)

    def finish_leaving(self, ref: str) -> None:
        """Note that the server knows that a job has ended in this process."""
        self._leaving.discard(ref)

    def forget_server(self) -> None:
        """Forget the messages to and from the server that an eviction has made void."""
        self._leaving.clear()
        self._cancelled_unread.clear()

    def is_known(self, ref: str) -> bool:
        """Return whether a job is open, or has ended while the server does not know it yet."""
        return ref in self._by_ref or ref in self._leaving

    def release(self, held: HeldJob) -> None:
        """Remove a job that this process no longer does."""
        if self._held.get(held.key) is held:
            del self._held[held.key]
        self._by_ref.pop(held.ref, None)
        if not self._by_ref:
            self._free.set()

    async def wait_until_none_held(self) -> None:
        """Wait until this process does no job."""
        await self._free.wait()
