"""What becomes of a message: which way it goes, and what is done with one that comes."""

import asyncio

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
from pipecat.pipeline.job_context import JobStatus

from pipecat_jobs._protocol.flow import set_window, window_of
from pipecat_jobs._protocol.headers import (
    affinity_of,
    runs_once,
    set_attempt,
    set_moved,
    set_run_once,
)
from pipecat_jobs._protocol.messages import find_problem
from pipecat_jobs._protocol.text import describe, shorten
from pipecat_jobs.bus._distributed.flow import Flow
from pipecat_jobs.bus._distributed.local import HearsOfLoss, LocalSide
from pipecat_jobs.bus._distributed.open_jobs import (
    ENDS,
    ORDERS,
    TELLINGS,
    Asked,
    Held,
    Ledger,
    Parties,
)
from pipecat_jobs.bus._distributed.stats import BusStats
from pipecat_jobs.bus.envelope import Envelopes
from pipecat_jobs.bus.redis.inbox import Entry
from pipecat_jobs.bus.redis.outbox import Argument, Call, Lane, Outbox
from pipecat_jobs.bus.wire import WireCodec
from pipecat_jobs.errors import MessageTypeError, UnreadableMessageError
from pipecat_jobs.outcomes import ErrorDetails

#: What a request is signed for; the others are signed for the lane they take.
_REQUEST = "job"
#: What a request begins with, when whoever asks wants it never to be begun twice, and when not.
_ONCE, _MAYBE_AGAIN = b"1", b"0"
#: The most jobs that one audit asks about.
_AUDITED = 1000


class Post:
    """Sends messages off and takes in those that come.

    Args:
        local: The subscribers of this process.
        outbox: Where what crosses the server goes.
        codec: Turns messages into bytes and back.
        envelopes: Goes around them.
        takeover: Seconds that a request waits for a process, for the error's message.
        through_server: Whether messages for this process cross the server too.
        stats: Where to count.
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
        self.ledger = Ledger()
        self._flow = Flow(self.ledger, outbox, envelopes)
        self._reasons = {
            "unhosted": f"no process that may run it came within {takeover:g} s",
            "once": "the process that ran it is gone, and it must not run twice",
            "attempts": "every process that ran it was lost with it",
            "unreadable": "the process that took it could not read it",
            "expelled": "this process was away for longer than its lease",
            "unknown": "the server has lost it",
        }

    # -- sending -----------------------------------------------------------------------------

    def publish(self, message: BusMessage) -> None:
        """Send a message on its way.

        Args:
            message: The message.

        Raises:
            MessageTypeError: If it holds what cannot be carried, or its target is no text.
            MessageTooLargeError: If it is too large.
            BusFullError: If the server is away and too much waits for it.
        """
        target, parties = message.target, Parties.of(message)
        _check_text("target", target or "")
        stays = bool(target) and not self._through_server and self._local.has(target or "")
        if parties is not None and isinstance(message, ORDERS):
            asked = self.ledger.asked(parties)
            if asked is not None:
                self._order(asked, message)
                return
        if parties is not None and isinstance(message, TELLINGS):
            held = self.ledger.held(parties)
            if held is not None:
                self._tell(held, message)
                return
            if not stays:
                # The job has ended, or is another process's by now.
                self._stats.late_answers += 1
                logger.debug(
                    f"{self._local}: not sending {describe(message)}: not this process's job"
                )
                return
        if stays:
            self._local.on_message_received(message)
        elif isinstance(message, BusJobRequestMessage) and target:
            self._ask(message, target)
        else:
            self.route(message, target or "")

    def _ask(self, message: BusJobRequestMessage, target: str) -> None:
        parties = Parties(message.source, target, message.job_id)
        if self.ledger.asked(parties) is not None:
            logger.warning(f"{self._local}: not sending {describe(message)}: it has been sent")
            return
        once, job_name = runs_once(message), message.job_name or ""
        affinity = affinity_of(message) or ""
        _check_text("job_name", job_name)
        body = (_ONCE if once else _MAYBE_AGAIN) + self._codec.encode(message)

        def arguments(process: str, number: int) -> tuple[Argument, ...]:
            sealed = self._envelopes.seal(_REQUEST, process, number, body)
            flag = "1" if once else "0"
            return target, job_name, flag, asked.attempt, sealed, message.source, affinity

        def replied(_: str) -> None:
            asked.sent = True

        call = Call(Lane.DATA, "ask", arguments, replied, outlives=not once, essential=False)
        asked = Asked(parties, call, window=lambda: window_of(message))
        self._outbox.put(call)
        self.ledger.ask(asked)

    def _order(self, asked: Asked, message: BusMessage) -> None:
        cancels = isinstance(message, BusJobCancelMessage)
        body, lane = self._codec.encode(message), _lane(message)
        if cancels:
            asked.cancelled = True
            # Asked for again, it would be begun by somebody who never hears of the cancel.
            asked.request.outlives = False
            if self._outbox.withdraw(asked.request):
                self._cancelled_untaken(asked)
                return

        def arguments(process: str, number: int) -> tuple[Argument, ...]:
            sealed = self._envelopes.seal(lane.letter, process, number, body)
            return asked.request.number, lane.letter, "m", "1" if cancels else "0", sealed

        def replied(reply: str) -> None:
            if reply == "untaken":
                self._cancelled_untaken(asked)

        self._outbox.put(Call(lane, "order", arguments, replied))

    def _tell(self, held: Held, message: BusMessage) -> None:
        body, lane = self._codec.encode(message), _lane(message)
        last, streams = isinstance(message, ENDS), isinstance(message, BusJobStreamDataMessage)

        def arguments(process: str, number: int) -> tuple[Argument, ...]:
            sealed = self._envelopes.seal(lane.letter, process, number, body)
            return held.ref, held.attempt, lane.letter, "m", "1" if last else "0", sealed

        def replied(reply: str) -> None:
            if streams:
                held.window.arrived(heard=True, kept=False)
            if last:
                self.ledger.left(held.ref)
            if reply == "stale":
                self._stats.late_answers += 1
                logger.warning(
                    f"{self._local}: {describe(message)} came too late: not this process's job"
                )

        # A stream that waits for its turn is bounded by that.
        essential = last or (streams and held.window.under_way > 0)
        self._outbox.put(Call(lane, "tell", arguments, replied, essential=essential))
        if last:
            self.ledger.let_go(held)
            self.ledger.leaving(held.ref)

    def route(self, message: BusMessage, target: str) -> None:
        """Send a message on its way that is about no job of this process.

        Args:
            message: The message.
            target: Whom to send it to, or nobody for everybody, this process included.

        Raises:
            MessageTypeError: If it holds what cannot be carried.
        """
        try:
            body = self._codec.encode(message)
        except MessageTypeError as error:
            if not isinstance(message, BusFrameMessage):
                raise
            # A pipeline pushes what it likes across a bridge; not all of it is for others.
            body = None
            if error.type_name not in self._warned:
                self._warned.add(error.type_name)
                logger.warning(f"{self._local}: not sent to other processes: {error}")
        if not target and not self._through_server:
            self._local.on_message_received(message)
        if body is None:
            return
        sealed_body, lane = body, _lane(message)
        to_self = "1" if self._through_server else "0"

        def arguments(process: str, number: int) -> tuple[Argument, ...]:
            sealed = self._envelopes.seal(lane.letter, process, number, sealed_body)
            return lane.letter, target, sealed, to_self

        urgent = lane is Lane.URGENT
        self._outbox.put(Call(lane, "route", arguments, outlives=True, essential=urgent))

    # -- reading -----------------------------------------------------------------------------

    def read(self, entry: Entry) -> None:
        """Do with a message from the inbox what has to be done.

        Args:
            entry: The message.
        """
        try:
            self._read(entry)
        except UnreadableMessageError as error:
            log = logger.debug if self._stats.garbage else logger.warning
            self._stats.garbage += 1
            log(f"{self._local}: skipping what is no message of this channel: {error}")
            if entry.kind == "j":
                # Whoever asked must not wait for it.
                self._answer_ref("refuse", entry.ref, entry.attempt)

    def _read(self, entry: Entry) -> None:
        match entry.kind:
            case "m":
                letter = self._envelopes.open(entry.lane.letter, entry.body)
                message = self._codec.decode(letter.body)
                if isinstance(message, BusWorkerRegistryMessage):
                    self._local.introduced(message.runner, letter.sender)
                if not (isinstance(message, BusJobCancelMessage) and self._is_unread(entry)):
                    self._arrived(message, entry)
            case "j":
                self._take(self._request(entry), entry)
            case "f":
                self._flow.read(entry)
            case "c":
                held = self.ledger.held_as(entry.ref)
                # It overtakes a request that has not been read yet.
                self.ledger.call_off(entry.ref, entry.attempt)
                if held is not None:
                    self.revoke(held, f"the process of '{held.parties.asker}' is gone")
            case "l":
                number = entry.ref.rpartition(":")[2]
                for asked in self.ledger.numbered([number]):
                    self._lost(asked, _text(entry))
            case "g":
                self._local.process_gone(entry.ref, _text(entry).split("\n"))
            case "x":
                unknown, _, held = _text(entry).partition("|")
                self._audited(unknown.split(" ") if unknown else [], set(held.split()))
            case "e":
                self._reach_mark(entry)
            case _:
                raise UnreadableMessageError(f"an entry of kind {shorten(entry.kind)}")

    def _arrived(self, message: BusMessage, entry: Entry) -> None:
        parties = Parties.of(message)
        if parties is not None and isinstance(message, TELLINGS):
            if not entry.ref:
                raise UnreadableMessageError(
                    f"{describe(message)} answers for a job it does not hold"
                )
            if isinstance(message, ENDS):
                self.ledger.answered(parties)
        self._local.on_message_received(message)
        if parties is not None and isinstance(message, BusJobStreamDataMessage):
            asked = self.ledger.asked(parties)
            if asked is not None:
                self._flow.chunk_came(asked, entry.attempt)

    def _is_unread(self, entry: Entry) -> bool:
        # The worker would ignore a cancel that arrives before its request, and then do the job.
        if not entry.ref or self.ledger.held_as(entry.ref) is not None:
            return False
        return self.ledger.cancel_unread(entry.ref, entry.attempt)

    def _request(self, entry: Entry) -> BusJobRequestMessage:
        # A request that waited or was reassigned arrives behind messages that were sent after it.
        letter = self._envelopes.open(_REQUEST, entry.body, in_order=False)
        if entry.ref != f"{letter.sender}:{letter.number}":
            raise UnreadableMessageError(
                f"a request of '{letter.sender}' as job {shorten(entry.ref)}"
            )
        once, message = letter.body[:1], self._codec.decode(letter.body[1:])
        if not isinstance(message, BusJobRequestMessage) or not message.target:
            raise UnreadableMessageError(f"{describe(message)} is not a request")
        if problem := find_problem(message):
            raise UnreadableMessageError(f"{problem}: {describe(message)}")
        if once == _ONCE:
            set_run_once(message)
        return message

    def _take(self, message: BusJobRequestMessage, entry: Entry) -> None:
        target = message.target or ""
        cancelled = self.ledger.was_cancelled_unread(entry.ref, entry.attempt)
        if self.ledger.has_heard(entry.ref, entry.attempt):
            logger.warning(
                f"{self._local}: ignoring {describe(message)}: cancelled, or here before"
            )
            return
        if not self._local.takes_requests(target):
            self.give_back(entry.ref, entry.attempt, started=False)
            return
        parties = Parties(message.source, target, message.job_id)
        again = entry.attempt > 1 and self.ledger.has_held(parties)
        if again or self.ledger.held(parties):
            # Asked for again, without a word of who had it before, or by another of the same name.
            # The worker would take it for an echo of what it has had, and not answer.
            self.give_back(entry.ref, entry.attempt, started=True)
            return
        held = Held(parties, entry.ref, entry.attempt)
        self.ledger.hold(held)
        if cancelled:
            reason = "cancelled before it began"
            self._tell(held, parties.answer(JobStatus.CANCELLED, {"reason": reason}))
            return
        if entry.attempt > 1:
            self._stats.taken_over += 1
        set_attempt(message, entry.attempt)
        if entry.moved:
            set_moved(message)
        set_window(message, lambda _: held.window)
        self._local.on_message_received(message)

    def _audited(self, unknown: list[str], held: set[str]) -> None:
        for asked in self.ledger.numbered(unknown):
            if asked.sent:
                self._lost(asked, "unknown")
        for ref in held:
            if not self.ledger.is_known(ref):
                # The server went back to a state from before this process had done with it.
                self._answer_ref("disown", ref, 0)

    # -- ends that nobody else can tell of ---------------------------------------------------

    def _cancelled_untaken(self, asked: Asked) -> None:
        self.ledger.answered(asked.parties)
        self._answer(asked, JobStatus.CANCELLED, {"reason": "cancelled before it was taken"})

    def _lost(self, asked: Asked, why: str) -> None:
        self.ledger.answered(asked.parties)
        if asked.cancelled:
            self._answer(asked, JobStatus.CANCELLED, None)
            return
        self._stats.lost += 1
        parties = asked.parties
        # Not in words that somebody else has written into the stream: an LLM may read them.
        reason = self._reasons.get(why, self._reasons["unknown"])
        requester = self._local.subscriber(parties.asker)
        if isinstance(requester, HearsOfLoss):
            self._local.tell_lost(requester, parties, reason)
        else:
            error = ErrorDetails("WorkerLostError", f"worker '{parties.worker}': {reason}")
            self._answer(asked, JobStatus.ERROR, error.to_response())

    def _answer(self, asked: Asked, status: JobStatus, response: dict[str, object] | None) -> None:
        self._local.on_message_received(asked.parties.answer(status, response))

    # -- jobs that change hands --------------------------------------------------------------

    def revoke(self, held: Held, reason: str) -> None:
        """Stop a job that is no longer this process's.

        Args:
            held: The job.
            reason: Why, for the worker.
        """
        self.ledger.let_go(held)
        parties = held.parties
        self._local.on_message_received(
            BusJobCancelMessage(
                source=parties.asker, target=parties.worker, job_id=parties.job_id, reason=reason
            )
        )

    def give_back(self, ref: str, attempt: int, *, started: bool) -> None:
        """Give a job to another process.

        Args:
            ref: The server's name for it.
            attempt: The attempt that was this process's.
            started: Whether a worker has got it.
        """
        self._answer_ref("give_back", ref, attempt, "1" if started else "0")

    def give_back_undelivered(self, request: BusJobRequestMessage) -> bool:
        """Give another process a job whose request its worker raised at.

        Args:
            request: The request.

        Returns:
            Whether it came through the server and has been given back.
        """
        held = self.ledger.held(Parties(request.source, request.target or "", request.job_id))
        if held is None:
            return False
        # The worker may have begun before it raised.
        self.revoke(held, f"worker '{held.parties.worker}' raised at the request")
        self.give_back(held.ref, held.attempt, started=True)
        return True

    def expelled(self) -> None:
        """Give up what the process had, which the others have been told it is gone with."""
        for held in self.ledger.all_held():
            self.revoke(held, self._reasons["expelled"])
        self.ledger.forget_server()
        # What was on its way to this process is no more.
        self._reach_marks()
        for asked in self.ledger.open():
            if asked.sent or (asked.request.number and not asked.request.outlives):
                self._lost(asked, "expelled")
            elif asked.request.number:
                asked.attempt += 1

    def audit(self) -> None:
        """Ask the server what it knows of this process's jobs."""
        sent = [asked.request.number for asked in self.ledger.open() if asked.sent]
        for start in range(0, max(len(sent), 1), _AUDITED):
            numbers = tuple(sent[start : start + _AUDITED])
            self._outbox.put(Call(Lane.CONTROL, "audit", lambda _, __, n=numbers: n))

    async def caught_up(self) -> None:
        """Wait until the server has what waits to be sent, and what it then has for us is read."""
        self._last_mark += 1
        number, mark = self._last_mark, asyncio.Event()
        self._marks[number] = mark
        # The lane that goes last: what waits to be sent goes before it.
        self._outbox.put(Call(Lane.DATA, "mark", lambda _, __: (number,), outlives=True))
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

    def _answer_ref(self, command: str, ref: str, attempt: int, *more: str) -> None:
        self.ledger.leaving(ref)

        def replied(_: str) -> None:
            self.ledger.left(ref)

        self._outbox.put(Call(Lane.CONTROL, command, lambda _, __: (ref, attempt, *more), replied))


def _check_text(field: str, value: object) -> None:
    # The outbox sends in order: what can never be sent would hold up all that is behind it.
    if not isinstance(value, str):
        raise MessageTypeError(type(value).__name__, field)


def _text(entry: Entry) -> str:
    try:
        return entry.body.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise UnreadableMessageError(f"an entry of kind {shorten(entry.kind)}: {error}") from error


def _lane(message: BusMessage) -> Lane:
    return Lane.URGENT if isinstance(message, BusSystemMessage) else Lane.DATA
