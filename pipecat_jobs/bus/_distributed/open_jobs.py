"""The open jobs of this process: those it has requested, and those it does for others."""

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

#: How many chunks of one stream wait here to be sent, before the worker has to wait.
_UNSENT = 64
#: How many jobs of others are remembered, so that a repeated request is recognized.
_MOST_SEEN = 4096
#: What a requester sends to the worker of a job.
REQUESTER_MESSAGES = (BusJobCancelMessage, BusJobUpdateRequestMessage)
#: What a worker ends a job with.
FINAL_MESSAGES = (BusJobResponseMessage, BusJobResponseUrgentMessage, BusJobStreamEndMessage)
#: What a worker sends to the requester of a job.
WORKER_MESSAGES = (
    *FINAL_MESSAGES,
    BusJobUpdateMessage,
    BusJobUpdateUrgentMessage,
    BusJobStreamStartMessage,
    BusJobStreamDataMessage,
)


@dataclass(frozen=True, slots=True)
class JobKey:
    """One job at one worker, as both sides know it."""

    requester: str
    worker: str
    job_id: str

    @classmethod
    def of(cls, message: BusMessage) -> "JobKey | None":
        """Read which job a message is about, or None when it is about none or has no target."""
        # A peer may have sent anything as the id.
        if not message.target or not isinstance(getattr(message, "job_id", None), str):
            return None
        if isinstance(message, WORKER_MESSAGES):
            return cls(message.target, message.source, message.job_id)
        if isinstance(message, REQUESTER_MESSAGES):
            return cls(message.source, message.target, message.job_id)
        return None

    def make_response(self, status: JobStatus, response: JobData | None) -> BusJobResponseMessage:
        """Make a response that ends the job, in the worker's name."""
        return BusJobResponseMessage(
            source=self.worker,
            target=self.requester,
            job_id=self.job_id,
            status=status,
            response=response,
        )


@dataclass(slots=True, eq=False)
class RequestedJob:
    """A job that this process has requested.

    Parameters:
        key: Which job.
        request: The call that requests it.
        sent: Whether the server has the request.
        cancelled: Whether the requester has cancelled it.
        attempt: How often it was requested without knowing whether the server had the request.
        window: Finds the flow control of its stream.
        paused_attempt: The attempt whose stream was told to wait, or 0.
    """

    key: JobKey
    request: Call
    sent: bool = False
    cancelled: bool = False
    attempt: int = 1
    window: Callable[[], StreamWindow | None] = lambda: None
    paused_attempt: int = 0


@dataclass(slots=True, eq=False)
class HeldJob:
    """A job that this process does for another.

    Parameters:
        key: Which job.
        ref: The server's name for it.
        attempt: The attempt that this process makes.
        window: Flow control of its stream.
    """

    key: JobKey
    ref: str
    attempt: int
    window: StreamWindow = field(default_factory=lambda: StreamWindow(_UNSENT))


class OpenJobs:
    """The jobs of this process that cross the server, in both directions."""

    def __init__(self) -> None:
        self._requested: dict[JobKey, RequestedJob] = {}
        self._held: dict[JobKey, HeldJob] = {}
        self._by_ref: dict[str, HeldJob] = {}
        self._seen: Recent[tuple[str, int], None] = Recent(_MOST_SEEN)
        #: Ref and attempt of jobs whose requests must not be taken. Each of them decides whether a
        #: job runs, so their number is not bounded.
        self._abandoned: Expiring[tuple[str, int], bool] = Expiring()
        self._was_held: Recent[JobKey, None] = Recent(_MOST_SEEN)
        #: Refs of jobs that have ended here, which the server has not been told yet.
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

    def all_requested(self) -> list[RequestedJob]:
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
        """Have a job ignored if its request still arrives: its requester is gone."""
        self._abandoned.remember((ref, attempt), True)

    def has_seen(self, ref: str, attempt: int) -> bool:
        """Return whether this process has taken an attempt before, or it was abandoned."""
        attempted = (ref, attempt)
        return attempted in self._seen or self._abandoned.get(attempted) is not None

    def cancel_unread(self, ref: str, attempt: int) -> bool:
        """Remember the cancel of a job whose request has not been read.

        Returns whether its request may still arrive.
        """
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
        """Look up an open job that this process does, by the server's name for it."""
        return self._by_ref.get(ref)

    def all_held(self) -> list[HeldJob]:
        """List the open jobs that this process does for others."""
        return list(self._by_ref.values())

    def start_leaving(self, ref: str) -> None:
        """Remember that the server is about to be told that a job has ended here."""
        self._leaving.add(ref)

    def finish_leaving(self, ref: str) -> None:
        """Note that the server has been told."""
        self._leaving.discard(ref)

    def forget_server(self) -> None:
        """Forget what the server was to be told, and what it was about to send: it evicted us."""
        self._leaving.clear()
        self._cancelled_unread.clear()

    def is_known(self, ref: str) -> bool:
        """Return whether a job is open here, or the server is about to be told that it is not."""
        return ref in self._by_ref or ref in self._leaving

    def release(self, held: HeldJob) -> None:
        """Remove a job that this process no longer does."""
        if self._held.get(held.key) is held:
            del self._held[held.key]
        self._by_ref.pop(held.ref, None)
        if not self._by_ref:
            self._free.set()

    async def until_none_held(self) -> None:
        """Wait until this process does no job for others."""
        await self._free.wait()
