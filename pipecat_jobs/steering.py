"""Steering: telling the worker of an open job something more, and learning what became of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from pipecat_jobs._protocol.checks import check_text
from pipecat_jobs._protocol.text import shorten
from pipecat_jobs.errors import InvalidJobError
from pipecat_jobs.outcomes import JobData

#: What became of a steer.
SteerState: TypeAlias = Literal["accepted", "refused", "over"]
#: Is told what became of a steer, and why.
OnDecided: TypeAlias = Callable[[SteerState, str | None], None]


@dataclass(frozen=True, slots=True)
class SteerOutcome:
    """What became of a steer: the value of ``await self.steer(...)``.

    Parameters:
        state: "accepted" if the worker has taken it, "refused" if it has not and says why, "over"
            if the job ended before the worker took it.
        worker: Name of the worker of the job.
        reason: Why it was refused or came too late, as text for people; None if it was accepted.

    Example::

        async with self.job("worker", payload={"car": "B-PC 114"}, timeout=30) as j:
            outcome = await self.steer(j.job_id, {"also": "check the brakes"})
            print("noted" if outcome.accepted else f"not possible: {outcome.reason}")
    """

    state: SteerState
    worker: str
    reason: str | None = None

    @property
    def accepted(self) -> bool:
        """Whether the worker has taken it."""
        return self.state == "accepted"


class SteerDecision:
    """What becomes of one steer, decided once."""

    __slots__ = ("_on_decided", "state")

    def __init__(self, on_decided: OnDecided):
        self.state: SteerState | None = None
        self._on_decided = on_decided

    def decide(self, state: SteerState, reason: str | None = None) -> None:
        """Decide it; does nothing the second time."""
        if self.state is None:
            self.state = state
            self._on_decided(state, reason)


class JobSteer:
    """A steer as the worker of the job gets it, from ``job_steers()`` or ``on_job_steered()``.

    It is accepted when ``on_job_steered()`` returns, or when the loop over ``job_steers()`` asks
    for the next one, unless it was refused. :meth:`accept` tells the requester at once.

    Parameters:
        data: What the requester gave.
        job_id: The id of the job, at this worker.
        requester: Name of the worker that steers: the requester of the job, or of another job of
            the same key (``@job(key=..., on_busy="steer")``).

    Example::

        class Mechanic(BaseWorker):
            async def on_job_steered(self, steer):
                if "paint" in steer.data:
                    steer.refuse("this workshop does not paint")
                else:
                    print(f"more for job {steer.job_id}: {steer.data}")
    """

    __slots__ = ("_decision", "data", "job_id", "requester")

    def __init__(self, data: JobData, job_id: str, requester: str, decision: SteerDecision):
        self.data = data
        self.job_id = job_id
        self.requester = requester
        self._decision = decision

    @property
    def state(self) -> SteerState | None:
        """What became of it; None while that is not decided."""
        return self._decision.state

    def accept(self) -> None:
        """Tell the requester now that the worker has taken it.

        Raises:
            InvalidJobError: If it was accepted or refused already.
        """
        self._check_undecided("accept()")
        self._decision.decide("accepted")

    def refuse(self, reason: str) -> None:
        """Tell the requester that the worker does not take it.

        Args:
            reason: Why not, as text for people; an LLM may read it.

        Raises:
            InvalidJobTypeError: If the reason is not a string.
            InvalidJobError: If the reason is empty, or the steer was accepted or refused already.
        """
        why = check_text("reason", reason, "why the steer is refused, as text for people")
        self._check_undecided("refuse()")
        self._decision.decide("refused", why)

    def _check_undecided(self, method: str) -> None:
        # It may be over at any time, which is no mistake of the worker.
        if self.state in ("accepted", "refused"):
            raise InvalidJobError(
                f"{method} was called for a steer of job '{self.job_id}' that is {self.state} "
                "already; decide about each steer once, before the loop asks for the next one"
            )

    def __repr__(self) -> str:
        return f"JobSteer(data={shorten(self.data)}, job_id={self.job_id!r}, state={self.state!r})"
