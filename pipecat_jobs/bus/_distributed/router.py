"""Sends each message to where it belongs, and acts on each entry that arrives."""

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from typing import Protocol, runtime_checkable

from loguru import logger
from pipecat.bus.messages import (
    BusFrameMessage,
    BusJobCancelMessage,
    BusJobRequestMessage,
    BusJobStreamDataMessage,
    BusMessage,
    BusSystemMessage,
    BusWorkerRegistryMessage,
)
from pipecat.bus.subscriber import BusSubscriber
from pipecat.pipeline.job_context import JobStatus

from pipecat_jobs._protocol.flow import StreamWindow
from pipecat_jobs._protocol.headers import (
    decode_headers,
    encode_headers,
    find_window,
    job_headers,
    set_headers,
)
from pipecat_jobs._protocol.messages import find_problem
from pipecat_jobs._protocol.text import describe, shorten
from pipecat_jobs.bus._distributed.engine import (
    Argument,
    BusStats,
    Call,
    Command,
    Entry,
    EntryKind,
    Lane,
)
from pipecat_jobs.bus._distributed.flow import Flow
from pipecat_jobs.bus._distributed.open_jobs import (
    FINAL_MESSAGES,
    REQUESTER_MESSAGES,
    WORKER_MESSAGES,
    HeldJob,
    JobKey,
    OpenJobs,
    RequestedJob,
)
from pipecat_jobs.bus._distributed.outbox import Outbox
from pipecat_jobs.bus.envelope import Envelopes
from pipecat_jobs.bus.wire import WireCodec
from pipecat_jobs.errors import MessageTypeError, UnreadableMessageError
from pipecat_jobs.outcomes import ErrorDetails

#: The purpose that requests are signed for. Other messages are signed for the stream they go to.
_REQUEST = "job"
#: The most jobs in one call of an audit.
_AUDITED = 1000


@runtime_checkable
class LossListener(Protocol):
    """A requester that settles its jobs when their worker is lost."""

    async def worker_lost(
        self, worker_name: str, *, reason: str, job_id: str | None = None
    ) -> None:
        """Settle the jobs at a worker, or one of them, as lost."""
        ...


class LocalSide(Protocol):
    """The subscribers of this process, as the router sees them."""

    def find_subscriber(self, name: str) -> BusSubscriber | None:
        """Look up a subscriber by its name."""
        ...

    def has_subscriber(self, name: str) -> bool:
        """Return whether a subscriber has a name, or is a proxy of a worker that has it."""
        ...

    def has_keys(self, worker: str, job_name: str) -> bool:
        """Return whether the jobs of a name have keys at a worker of this process."""
        ...

    def takes_requests(self, worker: str) -> bool:
        """Return whether a worker takes requests from other processes now."""
        ...

    def on_message_received(self, message: BusMessage) -> None:
        """Deliver a message to the subscribers of this process."""
        ...

    def record_runner(self, runner: str, process: str) -> None:
        """Record the process of a runner."""
        ...

    def remove_process(self, process: str, runners: Iterable[str]) -> None:
        """Remove the workers of a process that has left or is dead from the registry."""
        ...

    def report_lost(self, requester: LossListener, key: JobKey, reason: str) -> None:
        """Have a requester settle one of its jobs as lost."""
        ...


class Router:
    """Sends the messages of this process, and delivers the messages that arrive.

    With ``through_server``, messages for this process cross the server too. ``takeover`` is used in
    the text of an error only.
    """

    def __init__(
        self,
        local: LocalSide,
        outbox: Outbox,
        codec: WireCodec,
        envelopes: Envelopes,
        *,
        takeover: float,
        through_server: bool,
        stats: BusStats,
    ):
        self._local = local
        self._outbox = outbox
        self._codec = codec
        self._envelopes = envelopes
        self._through_server = through_server
        self._stats = stats
        self._warned: set[str] = set()
        self._marks: dict[int, asyncio.Event] = {}
        self._last_mark = 0
        self.open_jobs = OpenJobs()
        self._flow = Flow(self.open_jobs, outbox, envelopes)
        self._reasons = {
            "unhosted": f"no process that may run it came within {takeover:g} s",
            "once": "the process that ran it is gone, and it must not run twice",
            "attempts": "every process that ran it was lost with it",
            "unreadable": "the process that took it could not read it",
            "evicted": "this process was away for longer than its lease",
            "unknown": "the server has lost it",
        }

    # -- sending -----------------------------------------------------------------------------

    def publish(self, message: BusMessage) -> None:
        """Send a message to its target, or to every process if it has no target."""
        target, key = message.target, JobKey.of(message)
        _check_text("target", target or "")
        stays = (
            bool(target)
            and not self._through_server
            and self._local.has_subscriber(target or "")
            and not self._has_key(message)
        )
        if key is not None and isinstance(message, REQUESTER_MESSAGES):
            job = self.open_jobs.find_requested(key)
            if job is not None:
                self._notify_worker(job, message)
                return
        if key is not None and isinstance(message, WORKER_MESSAGES):
            held = self.open_jobs.find_held(key)
            if held is not None:
                self._notify_requester(held, message)
                return
            if not stays:
                # The job has ended, or was reassigned to another process.
                self._stats.late_responses += 1
                logger.debug(
                    f"{self._local}: not sending {describe(message)}: not this process's job"
                )
                return
        if stays:
            self._local.on_message_received(message)
        elif isinstance(message, BusJobRequestMessage) and target:
            self._request(message, target)
        else:
            self.route(message, target or "")

    def _has_key(self, message: BusMessage) -> bool:
        # Only the server knows which process has the other jobs of the same key.
        return (
            isinstance(message, BusJobRequestMessage)
            and bool(message.job_name)
            and self._local.has_keys(message.target or "", message.job_name or "")
        )

    def _request(self, message: BusJobRequestMessage, target: str) -> None:
        key = JobKey(message.source, target, message.job_id)
        if self.open_jobs.find_requested(key) is not None:
            logger.warning(f"{self._local}: not sending {describe(message)}: it has been sent")
            return
        headers, job_name = job_headers(message), message.job_name or ""
        once, affinity = headers.run_once, headers.affinity or ""
        beside = self.open_jobs.find_requested(JobKey(message.source, target, headers.beside or ""))
        _check_text("job_name", job_name)
        body = encode_headers(headers) + self._codec.encode(message)

        def arguments(process: str, number: int) -> tuple[Argument, ...]:
            sealed = self._envelopes.seal(_REQUEST, process, number, body)
            flag = "1" if once else "0"
            other = beside.request.number if beside is not None else ""
            return target, job_name, flag, job.attempt, sealed, message.source, affinity, other

        def replied(_: str) -> None:
            job.sent = True

        call = Call(
            Lane.DATA, Command.REQUEST, arguments, replied, outlives=not once, essential=False
        )
        job = RequestedJob(key, call, window=lambda: find_window(message))
        self._outbox.put(call)
        self.open_jobs.add_requested(job)

    def _notify_worker(self, job: RequestedJob, message: BusMessage) -> None:
        cancels = isinstance(message, BusJobCancelMessage)
        body, lane = self._codec.encode(message), _find_lane(message)
        if cancels:
            job.cancelled = True
            # If it were requested again after an eviction, its worker would begin it and never get
            # the cancel.
            job.request.outlives = False
            if self._outbox.withdraw(job.request):
                self._settle_untaken(job)
                return

        def arguments(process: str, number: int) -> tuple[Argument, ...]:
            sealed = self._envelopes.seal(lane.stream, process, number, body)
            flag = "1" if cancels else "0"
            return job.request.number, lane.stream, EntryKind.MESSAGE, flag, sealed

        def replied(reply: str) -> None:
            if reply == "untaken":
                self._settle_untaken(job)

        self._outbox.put(Call(lane, Command.NOTIFY_WORKER, arguments, replied))

    def _notify_requester(self, held: HeldJob, message: BusMessage) -> None:
        body, lane = self._codec.encode(message), _find_lane(message)
        final = isinstance(message, FINAL_MESSAGES)
        streams = isinstance(message, BusJobStreamDataMessage)

        def arguments(process: str, number: int) -> tuple[Argument, ...]:
            sealed = self._envelopes.seal(lane.stream, process, number, body)
            flag = "1" if final else "0"
            return held.ref, held.attempt, lane.stream, EntryKind.MESSAGE, flag, sealed

        def replied(reply: str) -> None:
            if streams:
                held.window.note_arrival(handled=True, kept=False)
            if final:
                self.open_jobs.finish_leaving(held.ref)
            if reply == "stale":
                self._stats.late_responses += 1
                logger.warning(
                    f"{self._local}: {describe(message)} came too late: not this process's job"
                )

        # The window of a stream bounds its unsent chunks, so these may exceed the outbox's limit.
        essential = final or (streams and held.window.under_way > 0)
        self._outbox.put(
            Call(lane, Command.NOTIFY_REQUESTER, arguments, replied, essential=essential)
        )
        if final:
            self.open_jobs.release(held)
            self.open_jobs.start_leaving(held.ref)

    def route(self, message: BusMessage, target: str) -> None:
        """Send a message that is about no job of this process; with target "", to all."""
        try:
            body = self._codec.encode(message)
        except MessageTypeError as error:
            if not isinstance(message, BusFrameMessage):
                raise
            # A bridge sends every frame of its pipeline, also frames that only this process needs.
            body = None
            if error.type_name not in self._warned:
                self._warned.add(error.type_name)
                logger.warning(f"{self._local}: not sent to other processes: {error}")
        if not target and not self._through_server:
            self._local.on_message_received(message)
        if body is None:
            return
        to_seal, lane = body, _find_lane(message)
        to_self = "1" if self._through_server else "0"

        def arguments(process: str, number: int) -> tuple[Argument, ...]:
            sealed = self._envelopes.seal(lane.stream, process, number, to_seal)
            return lane.stream, target, sealed, to_self

        urgent = lane is Lane.URGENT
        self._outbox.put(Call(lane, Command.ROUTE, arguments, outlives=True, essential=urgent))

    # -- reading -----------------------------------------------------------------------------

    def read(self, entry: Entry) -> None:
        """Act on an entry of the inbox, or count and skip an entry that cannot be read."""
        try:
            self._read(entry)
        except UnreadableMessageError as error:
            log = logger.debug if self._stats.garbage else logger.warning
            self._stats.garbage += 1
            log(f"{self._local}: skipping an entry that is not this channel's: {error}")
            if entry.kind is EntryKind.REQUEST:
                # Its requester would wait for a response.
                self._leave(Command.REJECT, entry.ref, entry.attempt)

    def _read(self, entry: Entry) -> None:
        match entry.kind:
            case EntryKind.MESSAGE:
                opened = self._envelopes.open(entry.lane.stream, entry.body)
                message = self._codec.decode(opened.body)
                if isinstance(message, BusWorkerRegistryMessage):
                    self._local.record_runner(message.runner, opened.sender)
                if not (isinstance(message, BusJobCancelMessage) and self._is_unread(entry)):
                    self._deliver(message, entry)
            case EntryKind.REQUEST:
                self._take(self._open_request(entry), entry)
            case EntryKind.FLOW:
                self._flow.read(entry)
            case EntryKind.ABANDONED:
                held = self.open_jobs.find_held_by_ref(entry.ref)
                # This entry may overtake the request of the job.
                self.open_jobs.abandon(entry.ref, entry.attempt)
                if held is not None:
                    self.revoke(held, f"requester '{held.key.requester}' no longer waits for it")
            case EntryKind.LOST:
                number = entry.ref.rpartition(":")[2]
                for job in self.open_jobs.find_numbered([number]):
                    self._settle_lost(job, _decode_text(entry))
            case EntryKind.PROCESS_GONE:
                self._local.remove_process(entry.ref, _decode_text(entry).split("\n"))
            case EntryKind.AUDIT:
                lost, _, held = _decode_text(entry).partition("|")
                self._compare(lost.split(" ") if lost else [], set(held.split()))
            case EntryKind.MARK:
                self._reach_mark(entry)
            case EntryKind.UNREADABLE:
                raise UnreadableMessageError("an entry of unknown kind")

    def _deliver(self, message: BusMessage, entry: Entry) -> None:
        key = JobKey.of(message)
        if key is not None and isinstance(message, WORKER_MESSAGES):
            if not entry.ref:
                raise UnreadableMessageError(
                    f"{describe(message)} is about a job that its sender does not hold"
                )
            if isinstance(message, FINAL_MESSAGES):
                self.open_jobs.settle(key)
        self._local.on_message_received(message)
        if key is not None and isinstance(message, BusJobStreamDataMessage):
            job = self.open_jobs.find_requested(key)
            if job is not None:
                self._flow.pause_if_full(job, entry.attempt)

    def _is_unread(self, entry: Entry) -> bool:
        # A worker ignores a cancel that arrives before its request, and would then do the job.
        if not entry.ref or self.open_jobs.find_held_by_ref(entry.ref) is not None:
            return False
        return self.open_jobs.cancel_unread(entry.ref, entry.attempt)

    def _open_request(self, entry: Entry) -> BusJobRequestMessage:
        # Messages that were sent after a request can arrive before it, if it waited for a slot or
        # was reassigned.
        opened = self._envelopes.open(_REQUEST, entry.body, in_order=False)
        if entry.ref != f"{opened.sender}:{opened.number}":
            raise UnreadableMessageError(
                f"a request of '{opened.sender}' as job {shorten(entry.ref)}"
            )
        line, _, body = opened.body.partition(b"\n")
        try:
            headers = decode_headers(line)
        except ValueError as error:
            raise UnreadableMessageError(f"a request whose headers are {shorten(line)}") from error
        message = self._codec.decode(body)
        if not isinstance(message, BusJobRequestMessage) or not message.target:
            raise UnreadableMessageError(f"{describe(message)} is not a request")
        if problem := find_problem(message):
            raise UnreadableMessageError(f"{problem}: {describe(message)}")
        set_headers(message, headers)
        return message

    def _take(self, message: BusJobRequestMessage, entry: Entry) -> None:
        target = message.target or ""
        cancelled = self.open_jobs.take_unread_cancel(entry.ref, entry.attempt)
        if self.open_jobs.has_seen(entry.ref, entry.attempt):
            logger.warning(
                f"{self._local}: ignoring {describe(message)}: abandoned, or read before"
            )
            return
        if not self._local.takes_requests(target):
            self.reassign(entry.ref, entry.attempt, started=False)
            return
        key = JobKey(message.source, target, message.job_id)
        again = entry.attempt > 1 and self.open_jobs.was_held(key)
        if again or self.open_jobs.find_held(key):
            # A requester that does not know that this process had the job has requested it again,
            # or another requester of the same name did. The worker would ignore it as repeated.
            self.reassign(entry.ref, entry.attempt, started=True)
            return
        held = HeldJob(key, entry.ref, entry.attempt)
        self.open_jobs.hold(held)
        if cancelled:
            reason = "cancelled before it began"
            self._notify_requester(held, key.make_response(JobStatus.CANCELLED, {"reason": reason}))
            return
        if entry.attempt > 1:
            self._stats.taken_over += 1

        def window(_: str) -> StreamWindow:
            return held.window

        headers = job_headers(message)
        headers = replace(
            headers,
            # The requester counts its attempts from 1, and so does the server within each of them.
            attempt=headers.attempt + entry.attempt - 1,
            moved=entry.moved,
            find_window=window,
        )
        set_headers(message, headers)
        self._local.on_message_received(message)

    def _compare(self, lost: list[str], held: set[str]) -> None:
        for job in self.open_jobs.find_numbered(lost):
            if job.sent:
                self._settle_lost(job, "unknown")
        for ref in held:
            if not self.open_jobs.is_known(ref):
                # The server was restored to a state in which the job had not ended.
                self._leave(Command.DISOWN, ref, 0)

    # -- outcomes that no worker sends -------------------------------------------------------

    def _settle_untaken(self, job: RequestedJob) -> None:
        self.open_jobs.settle(job.key)
        self._respond(job, JobStatus.CANCELLED, {"reason": "cancelled before it was taken"})

    def _settle_lost(self, job: RequestedJob, why: str) -> None:
        self.open_jobs.settle(job.key)
        if job.cancelled:
            self._respond(job, JobStatus.CANCELLED, None)
            return
        self._stats.lost += 1
        key = job.key
        # Not the text of the entry: another program may have written it, and an LLM may read this.
        reason = self._reasons.get(why, self._reasons["unknown"])
        requester = self._local.find_subscriber(key.requester)
        if isinstance(requester, LossListener):
            self._local.report_lost(requester, key, reason)
        else:
            error = ErrorDetails("WorkerLostError", f"worker '{key.worker}': {reason}")
            self._respond(job, JobStatus.ERROR, error.to_response())

    def _respond(
        self, job: RequestedJob, status: JobStatus, response: dict[str, object] | None
    ) -> None:
        self._local.on_message_received(job.key.make_response(status, response))

    # -- jobs that move to another process ---------------------------------------------------

    def revoke(self, held: HeldJob, reason: str) -> None:
        """Cancel a job that this process must no longer do, with a reason for its worker."""
        self.open_jobs.release(held)
        key = held.key
        self._local.on_message_received(
            BusJobCancelMessage(
                source=key.requester, target=key.worker, job_id=key.job_id, reason=reason
            )
        )

    def reassign(self, ref: str, attempt: int, *, started: bool) -> None:
        """Have the server reassign a job; ``started`` if a worker has got its request."""
        self._leave(Command.REASSIGN, ref, attempt, "1" if started else "0")

    def reassign_undelivered(self, request: BusJobRequestMessage) -> bool:
        """Reassign a job whose worker raised, and return whether its request crossed the server."""
        held = self.open_jobs.find_held(
            JobKey(request.source, request.target or "", request.job_id)
        )
        if held is None:
            return False
        # The worker may have begun the job before it raised.
        self.revoke(held, f"worker '{held.key.worker}' raised at the request")
        self.reassign(held.ref, held.attempt, started=True)
        return True

    def on_evicted(self) -> None:
        """Cancel the jobs that this process does, and settle those it requested, as lost."""
        for held in self.open_jobs.list_held():
            self.revoke(held, self._reasons["evicted"])
        self.open_jobs.forget_server()
        # The eviction has deleted the inbox, and the marks in it.
        self._reach_marks()
        for job in self.open_jobs.list_requested():
            if job.sent or (job.request.number and not job.request.outlives):
                self._settle_lost(job, "evicted")
            elif job.request.number:
                job.attempt += 1

    def audit(self) -> None:
        """Ask the server which jobs of this process it has lost."""
        sent = [job.request.number for job in self.open_jobs.list_requested() if job.sent]
        for start in range(0, max(len(sent), 1), _AUDITED):
            numbers = tuple(sent[start : start + _AUDITED])
            self._outbox.put(Call(Lane.CONTROL, Command.AUDIT, lambda _, __, n=numbers: n))

    async def wait_until_caught_up(self) -> None:
        """Wait until all calls are sent and all entries that the server then had are read."""
        self._last_mark += 1
        number, mark = self._last_mark, asyncio.Event()
        self._marks[number] = mark
        # The mark takes the last lane, so that all calls that wait are sent before it.
        self._outbox.put(Call(Lane.DATA, Command.MARK, lambda _, __: (number,), outlives=True))
        await mark.wait()

    def _reach_mark(self, entry: Entry) -> None:
        try:
            number = int(entry.body)
        except ValueError as error:
            raise UnreadableMessageError(f"a mark {shorten(entry.body)}") from error
        mark = self._marks.pop(number, None)
        if mark is not None:
            mark.set()

    def _reach_marks(self) -> None:
        for mark in self._marks.values():
            mark.set()
        self._marks.clear()

    def _leave(self, command: Command, ref: str, attempt: int, *more: str) -> None:
        self.open_jobs.start_leaving(ref)

        def replied(_: str) -> None:
            self.open_jobs.finish_leaving(ref)

        self._outbox.put(Call(Lane.CONTROL, command, lambda _, __: (ref, attempt, *more), replied))


def _check_text(field: str, value: object) -> None:
    # The outbox sends in order, so a call that can never be sent would block all calls behind it.
    if not isinstance(value, str):
        raise MessageTypeError(type(value).__name__, field)


def _decode_text(entry: Entry) -> str:
    try:
        return entry.body.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise UnreadableMessageError(f"an entry of kind {entry.kind.name}: {error}") from error


def _find_lane(message: BusMessage) -> Lane:
    return Lane.URGENT if isinstance(message, BusSystemMessage) else Lane.DATA
