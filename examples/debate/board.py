"""What there is to see of a debate: who says what, since when, and how it ended."""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from pipecat_jobs import JobOutcome, OutcomeStatus


class State(StrEnum):
    """What a speaker is doing."""

    SILENT = "silent"
    WAITING = "waiting"
    SPEAKING = "speaking"
    LISTENING = "listening"
    DONE = "done"
    STOPPED = "stopped by you"
    FAILED = "failed"


@dataclass
class Speaker:
    """One of the four, and what it has said since it was last asked."""

    name: str
    state: State = State.SILENT
    text: str = ""
    tokens: int = 0
    problem: str = ""
    _asked: float = field(default_factory=time.monotonic)
    _took: float | None = None

    @property
    def busy(self) -> bool:
        """Whether it was asked and there is more to come."""
        return self.state in (State.WAITING, State.SPEAKING, State.LISTENING)

    @property
    def ended(self) -> bool:
        """Whether it was asked and nothing more comes."""
        return self.state in (State.DONE, State.STOPPED, State.FAILED)

    @property
    def seconds(self) -> float:
        """How long it took, or has taken so far."""
        return time.monotonic() - self._asked if self._took is None else self._took

    def say(self, token: str) -> None:
        """Add a token."""
        self.state = State.SPEAKING
        self.text += token
        self.tokens += 1

    def end(self, state: State, *, problem: str = "", seconds: float | None = None) -> None:
        """Note how it ended; only the first end counts."""
        if not self.busy:
            return
        self._took = self.seconds if seconds is None else seconds
        self.state, self.problem = state, problem


class Board:
    """The debate as everybody sees it: the screen draws it, the plain mode prints it."""

    def __init__(self, debaters: Iterable[str]):
        self._names = tuple(debaters)
        self._changed = asyncio.Event()
        self.topic = ""
        self.debaters = {name: Speaker(name) for name in self._names}
        self.moderator = Speaker("moderator")

    @property
    def speakers(self) -> list[Speaker]:
        """The debaters, then the moderator."""
        return [*self.debaters.values(), self.moderator]

    @property
    def quiet(self) -> bool:
        """Whether nothing changes until the user says something."""
        return not any(speaker.busy for speaker in self.speakers)

    @property
    def arguments(self) -> dict[str, str]:
        """What each debater said, for the moderator's LLM."""
        return {
            speaker.name: speaker.text if speaker.state is State.DONE else f"({speaker.problem})"
            for speaker in self.debaters.values()
        }

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something is true of the board."""
        while not condition():
            await self._changed.wait()

    # -- the debate --------------------------------------------------------------------------

    def open(self, topic: str) -> None:
        """Begin a debate."""
        self.topic = topic
        self.debaters = {name: Speaker(name, State.WAITING) for name in self._names}
        self._notify()

    def hear(self, name: str, token: str) -> None:
        """Take a token of a debater's, or the moderator's."""
        speaker = self.debaters.get(name, self.moderator)
        speaker.say(token)
        self._notify()

    def settle(self, outcomes: Mapping[str, JobOutcome]) -> None:
        """Note how the debaters' jobs ended that have."""
        for name, outcome in outcomes.items():
            match outcome.status:
                case OutcomeStatus.COMPLETED:
                    state = State.DONE
                case OutcomeStatus.CANCELLED:
                    state = State.STOPPED
                case _:
                    state = State.FAILED
            problem = outcome.error.message if outcome.error else outcome.cause
            self.debaters[name].end(state, problem=problem, seconds=outcome.ran)
        self._notify()

    def close(self, outcomes: Mapping[str, JobOutcome]) -> None:
        """End a debate: whoever was not even asked was stopped as well."""
        self.settle(outcomes)
        for speaker in self.debaters.values():
            speaker.end(State.STOPPED)
        self._notify()

    # -- the moderator -----------------------------------------------------------------------

    def moderator_asked(self) -> None:
        """The user has said something."""
        self.moderator = Speaker("moderator", State.WAITING)
        self._notify()

    def moderator_starts(self) -> None:
        """The moderator's LLM starts to answer the user, or the tool."""
        if self.moderator.text:
            self.moderator.text += "\n"
        self.moderator.state = State.SPEAKING
        self._notify()

    def moderator_listens(self) -> None:
        """The moderator's LLM has called the tool."""
        self.moderator.state = State.LISTENING
        self._notify()

    def moderator_ends(self) -> None:
        """The moderator's LLM is done, which is the end unless it waits for the tool."""
        if self.moderator.state is State.SPEAKING:
            self.moderator.end(State.DONE)
            self._notify()

    def moderator_stopped(self) -> None:
        """The user interrupted."""
        self.moderator.end(State.STOPPED)
        self._notify()

    def moderator_failed(self, problem: str) -> None:
        """The moderator's LLM failed."""
        self.moderator.end(State.FAILED, problem=problem)
        self._notify()

    def _notify(self) -> None:
        # A fresh event per change: whoever waits from now on waits for the next one.
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
