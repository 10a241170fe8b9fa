"""The state of a debate: the text of each speaker, its times, and its end.

It needs no Pipecat, so that the screen can be drawn while Pipecat is still being imported.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

#: The debaters, from left to right.
NAMES = ("advocate", "critic", "analyst")

UNDEBATED = (
    "The model answered alone: it did not call the debaters. Ask for a debate of a topic, or set "
    "OPENAI_MODEL to a model that calls tools."
)


def count(number: int, noun: str) -> str:
    """Write a number with its noun, such as ``"1 word"`` or ``"2 words"``."""
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"


class State(StrEnum):
    """The state of a speaker."""

    SILENT = "silent"
    WAITING = "waiting"
    SPEAKING = "speaking"
    LISTENING = "listening"
    DONE = "done"
    STOPPED = "stopped by you"
    FAILED = "failed"


@dataclass
class Speaker:
    """A debater or the moderator, and its text of the current debate."""

    name: str
    state: State = State.SILENT
    text: str = ""
    tokens: int = 0
    problem: str = ""
    _asked: float = field(default_factory=time.monotonic)
    _took: float | None = None

    @property
    def busy(self) -> bool:
        """Whether it has begun and has not ended."""
        return self.state in (State.WAITING, State.SPEAKING, State.LISTENING)

    @property
    def words(self) -> int:
        """Number of words so far."""
        return len(self.text.split())

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self.state in (State.DONE, State.STOPPED, State.FAILED)

    @property
    def seconds(self) -> float:
        """Seconds that it took, or has taken so far."""
        return time.monotonic() - self._asked if self._took is None else self._took

    def say(self, token: str) -> None:
        """Add a token."""
        self.state = State.SPEAKING
        self.text += token
        self.tokens += 1

    def end(self, state: State, *, problem: str = "") -> None:
        """Record how it ended; only the first end counts."""
        if not self.busy:
            return
        self._took = self.seconds
        self.state, self.problem = state, problem


class Board:
    """The state of all speakers; the screen draws it, and the plain mode prints it."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()
        self.topic = ""
        self.undebated = False
        """Whether the moderator has answered the user without a debate."""
        self.debaters = {name: Speaker(name) for name in NAMES}
        self.moderator = Speaker("moderator")

    @property
    def speakers(self) -> list[Speaker]:
        """The debaters, then the moderator."""
        return [*self.debaters.values(), self.moderator]

    @property
    def quiet(self) -> bool:
        """Whether nothing changes until the next text of the user."""
        return not any(speaker.busy for speaker in self.speakers)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition of the board is true."""
        while not condition():
            await self._changed.wait()

    # -- the debate --------------------------------------------------------------------------

    def open(self, topic: str) -> None:
        """Begin a debate."""
        self.topic = topic
        self.debaters = {name: Speaker(name, State.WAITING) for name in NAMES}
        self._notify()

    def hear(self, name: str, token: str) -> None:
        """Add a token of a debater or the moderator, unless it has ended."""
        speaker = self.debaters.get(name, self.moderator)
        if not speaker.ended:
            speaker.say(token)
            self._notify()

    def record_end(self, name: str, state: State, problem: str = "") -> None:
        """Record how a debater's job ended, and why if it failed."""
        self.debaters[name].end(state, problem=problem)
        self._notify()

    def close(self) -> None:
        """End a debate; a debater that has not ended was too slow."""
        for speaker in self.debaters.values():
            speaker.end(State.FAILED, problem="did not answer in time")
        self._notify()

    def stop(self) -> None:
        """Record that the user interrupted."""
        for speaker in self.speakers:
            speaker.end(State.STOPPED)
        self._notify()

    # -- the moderator -----------------------------------------------------------------------

    def moderator_asked(self) -> None:
        """Record that the user has spoken."""
        self.undebated = False
        self.moderator = Speaker("moderator", State.WAITING)
        self._notify()

    def moderator_starts(self) -> None:
        """Record that the moderator's LLM starts to answer the user or the tool's result."""
        if self.moderator.text:
            self.moderator.text += "\n"
        self.moderator.state = State.SPEAKING
        self._notify()

    def moderator_listens(self) -> None:
        """Record that the moderator's LLM has called the tool."""
        self.moderator.state = State.LISTENING
        self._notify()

    def moderator_ends(self) -> None:
        """Record that the LLM's run has ended; the moderator ends unless it waits for the tool."""
        if self.moderator.state is State.SPEAKING:
            self.moderator.end(State.DONE)
            self._notify()

    def moderator_answers_alone(self) -> None:
        """Record that the moderator's LLM answers the user, and has not called the tool."""
        self.undebated = True
        self._notify()

    def moderator_failed(self, problem: str) -> None:
        """Record that the moderator's LLM failed."""
        self.moderator.end(State.FAILED, problem=problem)
        self._notify()

    def _notify(self) -> None:
        # Each change has a new event, so that a later wait is for the next change.
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
