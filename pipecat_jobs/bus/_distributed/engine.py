"""What an engine does for a bus between processes, and what the bus does for its engine.

An engine sends calls from an outbox to a server, which keeps the state of a channel, and reads the
entries that the server puts into the inbox of this process. A second engine is a folder beside
``redis/`` that implements :class:`Engine`. No module of this package depends on one engine.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Protocol, TypeAlias

from pipecat_jobs.bus._distributed.offers import Offer

Argument: TypeAlias = bytes | str | int
#: Makes a call's arguments from the id of this process and the call's number.
Arguments: TypeAlias = Callable[[str, int], tuple[Argument, ...]]


class Lane(IntEnum):
    """Priorities of calls and entries, beginning with the highest."""

    CONTROL = 0
    URGENT = 1
    DATA = 2

    @property
    def stream(self) -> str:
        """The inbox stream of this lane: "u" for urgent messages, "d" for the others."""
        return "d" if self is Lane.DATA else "u"


class Command(StrEnum):
    """A command to the server, which does it completely or not at all.

    The comment of each one has its arguments, and what the server does.
    """

    #: worker, job name, run once, attempt, request, source, affinity, the number of an open job
    #: whose process is to be avoided or "": assign a job to a process; if it has a key
    #: (``Offer.keys``), to the process that has an open job of the same key.
    REQUEST = "request"
    #: number, lane, entry kind, whether it cancels, body: send to the process that does a job.
    NOTIFY_WORKER = "notify_worker"
    #: ref, attempt, lane, entry kind, whether it ends the job, body: send to the requester.
    NOTIFY_REQUESTER = "notify_requester"
    #: lane, target, body, whether to include this process: send to a name, or to all processes.
    ROUTE = "route"
    #: ref, attempt, whether it was started: reassign a job of this process.
    REASSIGN = "reassign"
    #: ref, attempt: settle a job as lost, because this process cannot read its request.
    REJECT = "reject"
    #: ref, attempt: reassign a job that this process does not know, or free its slot.
    DISOWN = "disown"
    #: name, offer: send messages for a name to this process, and requests according to the offer.
    HOST = "host"
    #: name: assign no more requests for a name to this process.
    WITHDRAW = "withdraw"
    #: name: send no more requests and messages for a name to this process.
    UNHOST = "unhost"
    #: numbers of requests: find which of these jobs the server has lost.
    AUDIT = "audit"
    #: number: put an entry behind all other entries in the inbox of this process.
    MARK = "mark"


class EntryKind(StrEnum):
    """The kind of an inbox entry. The head of ``redis/lua/state.lua`` has the same list."""

    #: A sealed message. If the entry has a ref, the message is about that job.
    MESSAGE = "m"
    #: A sealed request for a worker of this process.
    REQUEST = "j"
    #: A sealed instruction to the stream of a job: wait for the reader, or continue.
    FLOW = "f"
    #: The requester of a job no longer waits for it.
    ABANDONED = "c"
    #: A job that this process requested is lost; the body has the reason.
    LOST = "l"
    #: The process with the ref as its id has left or is dead; the body names its runners.
    PROCESS_GONE = "g"
    #: The reply to an audit: numbers of lost jobs, "|", refs of jobs that this process does.
    AUDIT = "x"
    #: A mark that this process has set; the body is its number.
    MARK = "e"
    #: An entry that another program has written.
    UNREADABLE = "?"


@dataclass(slots=True, eq=False)
class Call:
    """One call to the server.

    Parameters:
        lane: Its priority.
        name: The command.
        arguments: Makes the arguments of the command when it is sent.
        replied: Called with the reply of the server, unless this process was evicted before.
        outlives: Whether to send it again after this process was evicted and has joined again.
        essential: Whether it may exceed the limit of the outbox, because other calls depend on it.
        number: Its number among the calls of this process, from 1; 0 until it was tried.
    """

    lane: Lane
    name: Command
    arguments: Arguments
    replied: Callable[[str], None] = field(default=lambda _: None)
    outlives: bool = False
    essential: bool = True
    number: int = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the inbox of this process.

    Parameters:
        lane: The lane of the stream that it was in.
        kind: Its kind, which says what the other fields hold.
        ref: The name that the server has for the job it is about, or "".
        attempt: The attempt at that job, from 1; 0 if it is about no attempt.
        body: Its content.
        moved: Whether it is a request that its affinity would have sent to another process.
    """

    lane: Lane
    kind: EntryKind
    ref: str
    attempt: int
    body: bytes
    moved: bool = False


@dataclass(slots=True)
class BusStats:
    """Counters of a bus in one process, since the bus was made. All only grow.

    Parameters:
        sent: Calls that the server has taken.
        received: Messages that came from the server.
        garbage: Messages that could not be read or were not signed with the secret.
        late_responses: Messages of workers of this process about jobs that were no longer theirs.
        reconnects: How often the server was away and came back.
        expulsions: How often this process was evicted and joined again.
        taken_over: Jobs that began in this process after an earlier attempt in another process.
        lost: Jobs of requesters in this process that ended as lost.

    Example::

        from pipecat_jobs.bus.redis import RedisStreamsBus

        assert RedisStreamsBus().stats.lost == 0
    """

    sent: int = 0
    received: int = 0
    garbage: int = 0
    late_responses: int = 0
    reconnects: int = 0
    expulsions: int = 0
    taken_over: int = 0
    lost: int = 0


class Engine(Protocol):
    """Keeps this process on its channel and empties its outbox, also while the server is away."""

    @property
    def uid(self) -> str:
        """An id that stays the same as long as this process lives, also after an eviction."""
        ...

    @property
    def trouble(self) -> str | None:
        """A sentence that says why nothing reaches the server, or None."""
        ...

    async def start(self, timeout: float) -> None:
        """Join the channel, or raise if the server cannot be reached for ``timeout`` seconds."""
        ...

    async def stop(self, timeout: float) -> None:
        """Send the calls that wait, for at most ``timeout`` seconds, and leave the channel."""
        ...

    async def fetch_roster(self) -> set[str]:
        """Return the names of all runners on the channel, or raise :class:`UnreachableError`."""
        ...


class EngineListener(Protocol):
    """The bus, as its engine sees it."""

    def list_offers(self) -> Iterable[Offer]:
        """List the names of this process and the requests it takes."""
        ...

    def name_runners(self) -> str:
        """Return the names of the runners of this process, one per line."""
        ...

    def read(self, entry: Entry) -> None:
        """Take an entry from the inbox."""
        ...

    def on_evicted(self) -> None:
        """Stop all jobs of this process, because the server has reassigned them."""
        ...

    def on_rejoined(self) -> None:
        """Announce the workers of this process again after an eviction."""
        ...

    def audit(self) -> None:
        """Compare the state of this process with the server's."""
        ...

    def create_task(self, coroutine: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        """Start a task."""
        ...

    async def cancel_task(self, task: asyncio.Task[None]) -> None:
        """Cancel a task and wait for it."""
        ...


class UnreachableError(ConnectionError):
    """The server cannot be reached, or does not answer."""
