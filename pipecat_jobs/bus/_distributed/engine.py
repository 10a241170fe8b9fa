"""What an engine does for a bus between processes, and what the bus does for its engine.

An engine carries calls from an outbox to a server, which keeps the state of a channel, and reads
the entries that the server puts into the inbox of this process. A second engine is a folder beside
``redis/`` that implements :class:`Engine`; nothing in this package knows which one it is.
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
    """Priorities of calls and entries, the highest first."""

    CONTROL = 0
    URGENT = 1
    DATA = 2

    @property
    def stream(self) -> str:
        """The name of the inbox stream that this lane's messages go to."""
        return "d" if self is Lane.DATA else "u"


class Command(StrEnum):
    """What a process asks the server to do. Each is done completely or not at all."""

    #: worker, job name, run once, attempt, request, source, affinity: give a job to a process.
    REQUEST = "request"
    #: number, lane, entry kind, whether it cancels, body: send to the process that has a job.
    NOTIFY_WORKER = "notify_worker"
    #: ref, attempt, lane, entry kind, whether it ends the job, body: send to the requester.
    NOTIFY_REQUESTER = "notify_requester"
    #: lane, target, body, whether to include this process: send to a name, or to all processes.
    ROUTE = "route"
    #: ref, attempt, whether it was started: give a job of this process to another.
    REASSIGN = "reassign"
    #: ref, attempt: a request that cannot be read ends as lost.
    REJECT = "reject"
    #: ref, attempt: this process does not know a job that the server says it has.
    DISOWN = "disown"
    #: name, offer: take messages for a name, and requests as the offer says.
    HOST = "host"
    #: name: take no more requests for a name.
    WITHDRAW = "withdraw"
    #: name: take no more requests and messages for a name.
    UNHOST = "unhost"
    #: numbers of requests: find out which of these jobs the server has lost.
    AUDIT = "audit"
    #: number: put an entry behind everything that is in the inbox of this process.
    MARK = "mark"


class EntryKind(StrEnum):
    """What an entry in an inbox is. The head of ``redis/lua/state.lua`` has the same list."""

    #: A message, sealed. With a ref, it is about that job.
    MESSAGE = "m"
    #: A request that this process is to do, sealed.
    REQUEST = "j"
    #: Whether the stream of a job has to wait for its reader, sealed.
    FLOW = "f"
    #: The requester of a job no longer waits for it.
    ABANDONED = "c"
    #: A job of this process is lost; the body says why.
    LOST = "l"
    #: The process named by the ref has left or is dead; the body names its runners.
    PROCESS_GONE = "g"
    #: The reply to an audit: numbers of lost jobs, "|", refs of jobs that this process has.
    AUDIT = "x"
    #: A mark that this process has set; the body is its number.
    MARK = "e"
    #: Something else, which another program has written.
    UNREADABLE = "?"


@dataclass(slots=True, eq=False)
class Call:
    """One call to the server.

    Parameters:
        lane: Its priority.
        name: What to do.
        arguments: Makes the arguments of the command.
        replied: Called with the server's reply, unless this process was evicted meanwhile.
        outlives: Whether to send it again after this process was evicted and has joined again.
        essential: Whether it may go over the outbox's limit, since other calls depend on it.
        number: Its number among this process's calls; 0 until it has been tried.
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
    """One entry of this process's inbox.

    Parameters:
        lane: Which of the two streams it was in.
        kind: What it is.
        ref: The server's name for the job it is about, or "".
        attempt: The attempt at that job.
        body: The rest.
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
    """Counters of one process since it was started.

    Parameters:
        sent: Calls that the server has taken.
        received: Messages that came from the server.
        garbage: Messages that could not be read or were not signed with the secret.
        late_answers: Messages of this process about jobs that were no longer its own.
        reconnects: How often the server was away and came back.
        expulsions: How often this process was evicted and joined again.
        taken_over: Jobs that were begun here after another process was lost with them.
        lost: Jobs of this process that ended as lost.
    """

    sent: int = 0
    received: int = 0
    garbage: int = 0
    late_answers: int = 0
    reconnects: int = 0
    expulsions: int = 0
    taken_over: int = 0
    lost: int = 0


class Engine(Protocol):
    """Keeps this process on its channel and empties its outbox, also while the server is away."""

    @property
    def uid(self) -> str:
        """An id that this process keeps for as long as it lives."""
        ...

    @property
    def trouble(self) -> str | None:
        """A sentence that says why nothing reaches the server, or None."""
        ...

    async def start(self, timeout: float) -> None:
        """Join the channel, trying for so many seconds."""
        ...

    async def stop(self, timeout: float) -> None:
        """Send what waits, for at most so many seconds, and leave the channel."""
        ...

    async def fetch_roster(self) -> set[str]:
        """Ask for the runners on the channel, or raise :class:`UnreachableError`."""
        ...


class EngineListener(Protocol):
    """The bus, as its engine sees it."""

    def list_offers(self) -> Iterable[Offer]:
        """List the names of this process and the requests it takes."""
        ...

    def name_runners(self) -> str:
        """Name the runners of this process, one a line."""
        ...

    def read(self, entry: Entry) -> None:
        """Take an entry from the inbox."""
        ...

    def on_evicted(self) -> None:
        """Stop all jobs of this process: the server has given them away."""
        ...

    def on_rejoined(self) -> None:
        """Announce this process again after an eviction."""
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
