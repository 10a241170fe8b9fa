"""Follows the runs of an LLM from the request to the end of the speech."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from pipecat.processors.aggregators.llm_context import (
    LLMContext,
    LLMContextMessage,
    LLMSpecificMessage,
)

from pipecat_jobs.conversation.floor import Floor, FloorHolder

#: Seconds without speech after which the text of a run is taken for lost, e.g. because the speech
#: service has failed.
_SPEECH_LIMIT = 10.0
#: Seconds from the user's words until a realtime service answers them.
_ANSWER_LIMIT = 5.0
#: Seconds from the end of the speech until it is looked up in the context what was spoken, in case
#: the frame that tells of it came between two workers.
_MISSED_LIMIT = 0.5
#: Seconds from an interruption until Pipecat has written into the context what was heard.
_HEARD_LIMIT = 0.5


@dataclass(eq=False, slots=True)
class Run:
    """One run of the LLM, or one text that the bot says beside it."""

    text: str = ""
    """What the LLM has generated."""
    ended: bool = False
    """Whether the LLM has generated all of it."""
    written: str | None = None
    """What Pipecat has written into the context, once it was spoken."""
    failure: str | None = None
    """Why the LLM has not generated all of it."""
    context: LLMContext | None = None
    """The context of the run; None if it is not known."""
    position: int = 0
    """Where its text comes in the messages of the context."""
    home: "Runs | None" = None
    """The runs of the LLM that sees what becomes of it; None once it is over or cut off."""

    @property
    def has_words(self) -> bool:
        """Whether there is something to speak."""
        return any(character.isalnum() for character in self.text)

    def find_written(self) -> str | None:
        """Find in the context what was spoken of it, if the frame that tells of it was missed."""
        messages = self.context.messages[self.position :] if self.context is not None else ()
        for message in messages:
            if isinstance(message, LLMSpecificMessage) or message.get("role") != "assistant":
                continue
            content = message.get("content")
            if not isinstance(content, str):
                continue
            words = content.split()
            if words and self.text.split()[: len(words)] == words:
                return content
        return None


class RunListener(Protocol):
    """Is told what becomes of the runs."""

    def on_run(
        self, run: Run, messages: Sequence[LLMContextMessage] | None
    ) -> list[LLMContextMessage] | None:
        """Note that a run begins; return other messages for its context, None for the same."""
        ...

    def hide_reports(self, messages: list[LLMContextMessage]) -> list[LLMContextMessage]:
        """Leave out the messages of the reports of which the user has not heard all."""
        ...

    def on_speech(self, run: Run) -> None:
        """Note that the bot speaks the text of a run."""
        ...

    def on_spoken(self, run: Run) -> None:
        """Note that the text of a run was spoken to its end."""
        ...

    def on_unspoken(self, run: Run, reason: str) -> None:
        """Note that a run ended without a text that was spoken."""
        ...

    def on_called(self, run: Run) -> None:
        """Note that a run has called a function for which the conversation waits."""
        ...

    def on_cut(self, run: Run, heard: str, *, whole: bool) -> None:
        """Note that a run was cut off, with the words that were heard."""
        ...


class Runs:
    """The runs of one LLM that are not over, which hold the floor; the oldest is spoken first.

    Pipecat's assistant aggregator is behind the speech. It writes the text of a run into the
    context, and reports that with a frame, once the run was spoken, or cut off.
    """

    def __init__(self, floor: Floor):
        self.listener: RunListener | None = None
        self._floor = floor
        self._open: deque[Run] = deque()
        self._cut: deque[Run] = deque()
        """The runs that were cut off, until it is known what was heard of them."""
        self._newest: Run | None = None
        """The run that this LLM began last, even if another worker sees what becomes of it."""
        self._timer: asyncio.TimerHandle | None = None

    @property
    def latest(self) -> Run | None:
        """The run for which the LLM generates; None if it does not."""
        run = self._newest
        return run if run is not None and run.home is not None and not run.ended else None

    def begin(self, messages: Sequence[LLMContextMessage] | None) -> list[LLMContextMessage] | None:
        """Begin a run; return other messages for its context, None for the same."""
        self.end("another run began")
        self._settle_cut("")
        run = self._newest = Run(home=self)
        self._open.append(run)
        self._floor.take(FloorHolder.LLM)
        return self.listener.on_run(run, messages) if self.listener is not None else None

    def keep_context(self, context: LLMContext) -> None:
        """Note the context of the latest run, in which its text will be the next message."""
        run = self.latest
        if run is not None:
            run.context, run.position = context, len(context.messages)

    def expect(self) -> None:
        """Hold the floor for a run that answers the user, if there is one."""
        if not self._open:
            self._floor.take(FloorHolder.LLM)
            self._wait(_ANSWER_LIMIT, self._release_floor)

    def hide_reports(self, messages: list[LLMContextMessage]) -> list[LLMContextMessage]:
        """Leave out the messages of the reports of which the user has not heard all."""
        return self.listener.hide_reports(messages) if self.listener is not None else messages

    def add_text(self, text: str) -> None:
        """Note a part of the text that the LLM generates."""
        run = self.latest
        if run is not None:
            run.text += text

    def add_speech(self, text: str) -> None:
        """Note a text that the bot says beside the LLM, and that is written into the context."""
        if self.latest is None:
            # While the LLM generates, Pipecat writes such a text together with that of the run.
            self._open.append(Run(text=text, ended=True, home=self))
            self._floor.take(FloorHolder.LLM)
            self._wait(_SPEECH_LIMIT, self._lose_speech)

    def fail(self, reason: str) -> None:
        """Note that the LLM fails in the latest run."""
        run = self.latest
        if run is not None:
            run.failure = reason

    def note_call(self, run: Run | None) -> None:
        """Note that a run has called a function for which the conversation waits."""
        if run is not None and self.listener is not None:
            self.listener.on_called(run)

    def end(self, reason: str = "the LLM said nothing") -> None:
        """Note that the LLM has generated the latest run."""
        run = self.latest
        if run is not None and run.home is not None:
            run.ended = True
            run.home._note_end(run, run.failure or reason)

    def _note_end(self, run: Run, reason: str) -> None:
        if run.has_words:
            self._wait(_SPEECH_LIMIT, self._lose_speech)
            return
        self._open.remove(run)
        run.home = None
        if self.listener is not None:
            self.listener.on_unspoken(run, reason)
        self._release_floor()

    def on_text_written(self, text: str) -> None:
        """Note that Pipecat has written the text of a run into the context."""
        if self._cut:
            self._settle_cut(text)
            return
        run = next((run for run in self._open if run.ended and run.written is None), None)
        if run is not None:
            run.written = text
            self._check_spoken()

    def on_bot_speaks(self) -> None:
        """Note that the bot speaks."""
        run = next((run for run in self._open if run.written is None), None)
        if run is not None and self.listener is not None:
            self.listener.on_speech(run)

    def on_bot_silent(self) -> None:
        """Note that the bot has stopped speaking."""
        self._check_spoken()
        if self._open:
            self._wait(_MISSED_LIMIT, self._find_missed)

    def _check_spoken(self) -> None:
        while self._open and not self._floor.is_held_by(FloorHolder.BOT):
            run = self._open[0]
            if run.written is None:
                break
            self._open.popleft().home = None
            if self.listener is None:
                continue
            if run.failure is None:
                self.listener.on_spoken(run)
            else:
                self.listener.on_cut(run, run.written, whole=False)
        self._release_floor()

    def cut(self) -> None:
        """Note an interruption: nothing more of the runs is spoken."""
        while self._open:
            run = self._open.popleft()
            run.home = None
            self._cut.append(run)
        if self._cut:
            self._wait(_HEARD_LIMIT, lambda: self._settle_cut(""))
        self._release_floor()

    def _settle_cut(self, heard: str) -> None:
        """Tell what was heard of the runs that were cut off: of the first that is not written."""
        while self._cut:
            run = self._cut.popleft()
            # The interruption and the end of the speech may come at the same time.
            of_run, heard = (heard, "") if run.written is None else (run.written, heard)
            whole = run.failure is None and (
                run.written is not None
                or (run.ended and bool(of_run) and run.text.split() == of_run.split())
            )
            if self.listener is not None:
                self.listener.on_cut(run, of_run, whole=whole)

    def _lose_speech(self) -> None:
        if self._floor.is_held_by(FloorHolder.BOT):
            return
        while self._open and self._open[0].ended:
            run = self._open.popleft()
            run.home = None
            if self.listener is not None:
                self.listener.on_unspoken(run, "its text was not spoken")
        self._release_floor()

    def _wait(self, seconds: float, call: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, call)

    def _release_floor(self) -> None:
        if self._open:
            return
        self._floor.release(FloorHolder.LLM)
        if self._timer is not None and not self._cut:
            self._timer.cancel()
            self._timer = None

    def adopt(self, other: "Runs") -> None:
        """Take over the runs of a worker that no longer sees the frames of the conversation."""
        for run in other._open:
            run.home = self
        self._open.extend(other._open)
        self._cut.extend(other._cut)
        other._forget_all()
        if self._open:
            self._floor.take(FloorHolder.LLM)
        if self._cut:
            self._wait(_HEARD_LIMIT, lambda: self._settle_cut(""))
        elif self._open:
            self._wait(_MISSED_LIMIT, self._find_missed)

    def _find_missed(self) -> None:
        """Find the texts that were written while no worker saw the frames of the conversation."""
        for run in [run for run in self._open if run.ended and run.written is None]:
            text = run.find_written()
            if text is None:
                break
            run.written = text
            if len(text.split()) < len(run.text.split()):
                run.failure = "it was cut off"
        self._check_spoken()
        if self._open:
            self._wait(_SPEECH_LIMIT, self._lose_speech)

    def close(self) -> None:
        """Forget every run: the session has ended."""
        self.end("the session ended")
        for run in self._open:
            run.home = None
        self._forget_all()

    def _forget_all(self) -> None:
        self._open.clear()
        self._cut.clear()
        self._release_floor()
