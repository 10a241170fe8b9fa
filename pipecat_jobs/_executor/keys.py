"""One job at a time for each key: which job holds a key, and which jobs wait for it."""

from asyncio import Event
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING

from pipecat_jobs._protocol.headers import job_headers
from pipecat_jobs._protocol.keys import KeyRule

if TYPE_CHECKING:
    from pipecat_jobs._executor.execution import Execution


class Line:
    """The jobs of one key: the one that holds it, those that wait, those that joined or steer it.

    It exists as long as it has a job.
    """

    __slots__ = ("_forget", "_joined", "_steering", "_turns", "streams")

    def __init__(self, forget: Callable[[], object], *, streams: bool):
        self._forget = forget
        #: Whether its jobs may stream: a job that joined has missed the beginning of a stream.
        self.streams = streams
        #: In order of arrival; the first job holds the key. Each event is set once it does.
        self._turns: dict[Execution, Event] = {}
        #: The jobs that joined, in order of arrival, with the job that each joined.
        self._joined: dict[Execution, Execution] = {}
        #: The jobs whose payload steers another one, in order of arrival, with that job.
        self._steering: dict[Execution, Execution] = {}

    def list_open(self) -> "list[Execution]":
        """List the jobs that hold the key or wait for it, without those that are about to leave.

        A job that was cancelled, or whose response is sent, keeps the key until its handler has
        returned.
        """
        return [job for job in self._turns if job.is_open and not job.cancelled]

    def find_attempt(self, job_id: str | None) -> "Execution | None":
        """Find the open job of an id, beside which another attempt at the same job is asked for."""
        jobs = (*self._turns, *self._joined, *self._steering) if job_id is not None else ()
        return next((job for job in jobs if job.is_open and job.request.job_id == job_id), None)

    def find_leader(self) -> "Execution | None":
        """Find the job that a new one joins.

        When that job was cancelled, the oldest of those that joined it runs in its place.
        """
        return next((job for job in self._turns if job.is_open), None)

    def add(self, job: "Execution") -> None:
        """Add a job that waits until all earlier ones have left."""
        self._turns[job] = Event()
        self._give_turn()

    def join(self, job: "Execution", leader: "Execution") -> None:
        """Add a job that takes the response of another one."""
        self._joined[job] = leader

    def list_joined(self, leader: "Execution") -> "list[Execution]":
        """List the open jobs that joined a job."""
        if leader.cancelled:
            return []
        return [
            job
            for job, joined in self._joined.items()
            if joined is leader and job.is_open and not job.cancelled
        ]

    def steer(self, job: "Execution") -> None:
        """Add a job whose payload steers the open job; add it to the line if there is none."""
        if opened := self.list_open():
            self._steering[job] = opened[0]
        else:
            self.add(job)

    def find_steered(self, job: "Execution") -> "Execution | None":
        """Find the job that a job steers; None if it does not."""
        return self._steering.get(job)

    def steer_next(self, job: "Execution") -> None:
        """Have a job steer the job that is open now: the one that it was to steer has ended."""
        del self._steering[job]
        self.steer(job)

    async def wait(self, job: "Execution") -> "Execution | None":
        """Wait until a job holds the key, or until the job that it joined has ended.

        Returns:
            The joined job whose response it takes; None when it holds the key.
        """
        while (leader := self._joined.get(job)) is not None:
            await leader.until_ended()
            if leader.response is not None and not leader.cancelled:
                return leader
            self._leave_leader(job)
        await self._turns[job].wait()
        return None

    def _leave_leader(self, job: "Execution") -> None:
        # Jobs wake in order of arrival, so that the oldest one runs and the others join it.
        del self._joined[job]
        if leaders := self.list_open():
            self.join(job, leaders[0])
        else:
            self.add(job)

    def leave(self, job: "Execution") -> None:
        """Remove a job, and give the key to the next one. May be called more than once."""
        places = (self._joined, self._steering, self._turns)
        if all(place.pop(job, None) is None for place in places):
            return
        if self._turns:
            self._give_turn()
        elif not self._joined and not self._steering:
            self._forget()

    def _give_turn(self) -> None:
        next(iter(self._turns.values())).set()


class Keys:
    """The keys of the open jobs of one handler."""

    def __init__(self, rule: KeyRule, replace: "Callable[[Execution, Execution], None]"):
        self.rule = rule
        #: Cancels the first job, because the second one replaces it.
        self._replace = replace
        self._lines: dict[Hashable, Line] = {}

    def admit(self, job: "Execution") -> "Execution | None":
        """Put a job, whose payload has a key, into the line of its key.

        Returns:
            The open job of the same key because of which this one is refused; None otherwise.
        """
        key = self.rule.find_key(job.request.payload)
        line = self._lines.get(key) or Line(
            lambda: self._lines.pop(key, None), streams=self.rule.on_busy != "join"
        )
        if (first := line.find_attempt(job_headers(job.request).beside)) is not None:
            return first
        match self.rule.on_busy:
            case "queue":
                line.add(job)
            case "refuse":
                if opened := line.list_open():
                    return opened[0]
                line.add(job)
            case "replace":
                for other in line.list_open():
                    self._replace(other, job)
                line.add(job)
            case "join":
                if (leader := line.find_leader()) is not None:
                    line.join(job, leader)
                else:
                    line.add(job)
            case "steer":
                line.steer(job)
        self._lines[key] = job.line = line
        return None

    def __len__(self) -> int:
        return len(self._lines)
