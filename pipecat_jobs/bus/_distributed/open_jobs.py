"""Which jobs this process has asked others for, and which it does for others."""

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
from pipecat_jobs.bus.redis.outbox import Call
from pipecat_jobs.outcomes import JobData

#: How many chunks of one stream wait here to be sent, before the worker has to.
_UNSENT = 64
#: How many jobs of others are kept in mind, to know a request that nothing is to be done about.
_MOST_HEARD = 4096
#: From the one who asked to the worker.
ORDERS = (BusJobCancelMessage, BusJobUpdateRequestMessage)
#: From the worker, and the end of the job.
ENDS = (BusJobResponseMessage, BusJobResponseUrgentMessage, BusJobStreamEndMessage)
#: From the worker to the one who asked.
TELLINGS = (
    *ENDS,
    BusJobUpdateMessage,
    BusJobUpdateUrgentMessage,
    BusJobStreamStartMessage,
    BusJobStreamDataMessage,
)


@dataclass(frozen=True, slots=True)
class Parties:
    """One job, as both sides know it.

    Parameters:
        asker: The worker that asked.
        worker: The worker that was asked.
        job_id: The job's id.
    """

    asker: str
    worker: str
    job_id: str

    @classmethod
    def of(cls, message: BusMessage) -> "Parties | None":
        """Read off a message whose job it is about.

        Args:
            message: Any message.

        Returns:
            The job, or None when it is about none, or for nobody.
        """
        # A peer may have sent anything as the id.
        if not message.target or not isinstance(vars(message).get("job_id"), str):
            return None
        if isinstance(message, TELLINGS):
            return cls(message.target, message.source, message.job_id)
        if isinstance(message, ORDERS):
            return cls(message.source, message.target, message.job_id)
        return None

    def answer(self, status: JobStatus, response: JobData | None) -> BusJobResponseMessage:
        """Make the answer that ends it, in the worker's name.

        Args:
            status: How it ended.
            response: What there is to say of it.

        Returns:
            The message.
        """
        return BusJobResponseMessage(
            source=self.worker,
            target=self.asker,
            job_id=self.job_id,
            status=status,
            response=response,
        )


@dataclass(slots=True, eq=False)
class Asked:
    """A job that this process has asked for.

    Parameters:
        parties: Whose it is.
        request: The call that asks for it.
        sent: Whether the server has it.
        cancelled: Whether it has been called off.
        attempt: How often it has been asked for, without a word whether it was heard before.
        window: Finds what shows that its stream is not read fast enough.
        held_up: The attempt of which the stream has been told to wait, or 0.
    """

    parties: Parties
    request: Call
    sent: bool = False
    cancelled: bool = False
    attempt: int = 1
    window: Callable[[], StreamWindow | None] = lambda: None
    held_up: int = 0


@dataclass(slots=True, eq=False)
class Held:
    """A job that this process does.

    Parameters:
        parties: Whose it is.
        ref: The server's name for it.
        attempt: The attempt that this process makes.
        window: What its stream waits for.
    """

    parties: Parties
    ref: str
    attempt: int
    window: StreamWindow = field(default_factory=lambda: StreamWindow(_UNSENT))


class Ledger:
    """The jobs of this process that cross the server, in both directions."""

    def __init__(self) -> None:
        self._asked: dict[Parties, Asked] = {}
        self._held: dict[Parties, Held] = {}
        self._by_ref: dict[str, Held] = {}
        self._heard: Recent[tuple[str, int], None] = Recent(_MOST_HEARD)
        #: By the server's names, with the attempt: jobs whose requests must not be taken. Each of
        #: them decides whether a job runs, so their number is not bounded.
        self._called_off: Expiring[tuple[str, int], bool] = Expiring()
        self._was_held: Recent[Parties, None] = Recent(_MOST_HEARD)
        #: By the server's names: jobs that are done with here, which the server does not know yet.
        self._leaving: set[str] = set()
        #: By the server's names, with the attempt: jobs whose requests have not been read yet.
        self._cancelled_unread: set[tuple[str, int]] = set()
        self._free = asyncio.Event()
        self._free.set()

    # -- asked -------------------------------------------------------------------------------

    def ask(self, asked: Asked) -> None:
        """Note a job that is asked for.

        Args:
            asked: The job.
        """
        self._asked[asked.parties] = asked

    def asked(self, parties: Parties) -> Asked | None:
        """Look up a job that was asked for.

        Args:
            parties: Whose.

        Returns:
            The job, while it is open.
        """
        return self._asked.get(parties)

    def answered(self, parties: Parties) -> Asked | None:
        """Note that a job has ended.

        Args:
            parties: Whose.

        Returns:
            The job, if it was open.
        """
        return self._asked.pop(parties, None)

    def open(self) -> list[Asked]:
        """List what has been asked for and not answered.

        Returns:
            The jobs.
        """
        return list(self._asked.values())

    def numbered(self, numbers: Iterable[str]) -> list[Asked]:
        """Find open jobs by the numbers of their calls.

        Args:
            numbers: The numbers, as text.

        Returns:
            Those that are open.
        """
        wanted = {int(number) for number in numbers}
        return [asked for asked in self._asked.values() if asked.request.number in wanted]

    # -- held --------------------------------------------------------------------------------

    def hold(self, held: Held) -> None:
        """Note a job that this process takes.

        Args:
            held: The job.
        """
        self._heard.remember((held.ref, held.attempt), None)
        self._was_held.remember(held.parties, None)
        self._held[held.parties] = held
        self._by_ref[held.ref] = held
        self._free.clear()

    def call_off(self, ref: str, attempt: int) -> None:
        """Note that a job is not to be taken, should its request still come.

        Args:
            ref: The server's name for it.
            attempt: The attempt.
        """
        self._called_off.remember((ref, attempt), True)

    def has_heard(self, ref: str, attempt: int) -> bool:
        """Tell whether this process has taken a job before, or has heard that it is called off.

        Args:
            ref: The server's name for it.
            attempt: The attempt.

        Returns:
            Whether it has.
        """
        job = (ref, attempt)
        return job in self._heard or self._called_off.get(job) is not None

    def cancel_unread(self, ref: str, attempt: int) -> bool:
        """Note that a job is cancelled whose request has not been read yet.

        Args:
            ref: The server's name for it.
            attempt: The attempt.

        Returns:
            Whether its request may still come.
        """
        if self.has_heard(ref, attempt):
            return False
        self._cancelled_unread.add((ref, attempt))
        return True

    def was_cancelled_unread(self, ref: str, attempt: int) -> bool:
        """Tell whether a job was cancelled before its request was read, and forget it.

        Args:
            ref: The server's name for it.
            attempt: The attempt.

        Returns:
            Whether it was.
        """
        cancelled = (ref, attempt) in self._cancelled_unread
        self._cancelled_unread.discard((ref, attempt))
        return cancelled

    def has_held(self, parties: Parties) -> bool:
        """Tell whether this process has taken a job before, by whatever name of the server's.

        Args:
            parties: Whose.

        Returns:
            Whether it has.
        """
        return parties in self._was_held

    def held(self, parties: Parties) -> Held | None:
        """Look up a job that this process does.

        Args:
            parties: Whose.

        Returns:
            The job, while it is open.
        """
        return self._held.get(parties)

    def held_as(self, ref: str) -> Held | None:
        """Look up a job that this process does.

        Args:
            ref: The server's name for it.

        Returns:
            The job, while it is open.
        """
        return self._by_ref.get(ref)

    def all_held(self) -> list[Held]:
        """List what this process does for others.

        Returns:
            The jobs.
        """
        return list(self._by_ref.values())

    def leaving(self, ref: str) -> None:
        """Note that the server is about to be told that this process has done with a job.

        Args:
            ref: The server's name for it.
        """
        self._leaving.add(ref)

    def left(self, ref: str) -> None:
        """Note that the server has been told.

        Args:
            ref: The server's name for it.
        """
        self._leaving.discard(ref)

    def forget_server(self) -> None:
        """Note that the server is told nothing more, gives the jobs away, and sends none."""
        self._leaving.clear()
        self._cancelled_unread.clear()

    def is_known(self, ref: str) -> bool:
        """Tell whether the server has reason to think that this process does a job.

        Args:
            ref: The server's name for it.

        Returns:
            Whether it is open here, or the news that it is not are still on their way.
        """
        return ref in self._by_ref or ref in self._leaving

    def let_go(self, held: Held) -> None:
        """Note that a job is not, or no more, this process's.

        Args:
            held: The job.
        """
        if self._held.get(held.parties) is held:
            del self._held[held.parties]
        self._by_ref.pop(held.ref, None)
        if not self._by_ref:
            self._free.set()

    async def free(self) -> None:
        """Wait until this process does nothing for others."""
        await self._free.wait()
