"""The debate: a moderator whose LLM has a tool, and the three debaters that do the tool's jobs.

The user gives the moderator a topic. Its LLM calls ``debate``, which requests a job from all
debaters at once; each streams its argument while its own LLM generates it. When the user
interrupts, Pipecat cancels the tool, the tool cancels its jobs, and each job stops its debater's
LLM.
"""

from collections.abc import Callable
from typing import Any

from pipecat.bus.messages import (
    BusJobResponseMessage,
    BusJobResponseUrgentMessage,
    BusJobStreamDataMessage,
)
from pipecat.frames.frames import (
    ErrorFrame,
    Frame,
    FunctionCallResultFrame,
    FunctionCallsStartedFrame,
    InterruptionFrame,
    LLMContextFrame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    LLMMessagesAppendFrame,
    LLMTextFrame,
)
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.services.llm_service import LLMService

from examples.debate.board import Board, State
from pipecat_jobs import JobStatus, LLMContextWorker, job, job_tool

_STYLE = "Speak in at most 110 words of plain sentences: no lists, no headings, no Markdown."

DEBATERS = {
    "advocate": f"You are the advocate: you argue in favour of the topic you are given. {_STYLE}",
    "critic": f"You are the critic: you argue against the topic you are given. {_STYLE}",
    "analyst": f"You are the analyst: you weigh the evidence on the topic you are given. {_STYLE}",
}

MODERATOR = (
    "You moderate debates. Call the debate tool once for every topic the user brings up, then give "
    f"a balanced summary of what the debaters said and name what they disagree on. {_STYLE}"
)


def _read_end(
    message: BusJobResponseMessage | BusJobResponseUrgentMessage,
) -> tuple[State, str]:
    """Read how a debater's job ended, and why if it failed."""
    match message.status:
        case JobStatus.COMPLETED:
            return State.DONE, ""
        case JobStatus.CANCELLED:
            return State.STOPPED, ""
        case status:
            return State.FAILED, (message.response or {}).get("error", status)


def on_undebated(llm: LLMService[Any], report: Callable[[], None]) -> None:
    """Call a function whenever the LLM has answered the user without calling a tool.

    Args:
        llm: The moderator's LLM. Not every model calls tools.
        report: The function.
    """
    is_awaited = False

    def on_input(_: LLMService[Any], frame: Frame) -> None:
        nonlocal is_awaited
        match frame:
            case LLMContextFrame(context=LLMContext(messages=[*_, {"role": "user"}])):
                is_awaited = True
            case InterruptionFrame():
                is_awaited = False

    def on_output(_: LLMService[Any], frame: Frame) -> None:
        nonlocal is_awaited
        match frame:
            case FunctionCallsStartedFrame() | ErrorFrame():
                is_awaited = False
            case LLMFullResponseEndFrame() if is_awaited:
                is_awaited = False
                report()

    llm.add_event_handler("on_before_process_frame", on_input)
    llm.add_event_handler("on_before_push_frame", on_output)


class Debater(LLMContextWorker):
    """Argues one side of a topic, and streams its LLM's text to the requester.

    When the job is cancelled, the LLM's turn is cancelled too, which closes the connection to the
    provider. The next job finds the context as it was before the turn.
    """

    @job
    async def argue(self, topic: str) -> dict[str, str]:
        return {"text": await self.llm_turn(f"Topic: {topic}", stream=True)}


class Moderator(LLMContextWorker):
    """Talks with the user; before it talks about a topic, it has the debaters argue."""

    def __init__(self, llm: LLMService[Any], board: Board):
        super().__init__("moderator", llm=llm, active=True)
        self._board = board
        self._interruption: InterruptionFrame | None = None
        llm.add_event_handler("on_before_push_frame", self._on_frame)
        on_undebated(llm, board.moderator_answers_alone)

    @job_tool(*DEBATERS, job="argue", timeout=60)
    async def debate(self, topic: str) -> dict[str, Any]:
        """Have an advocate, a critic and an analyst argue a topic side by side.

        Args:
            topic: The topic, as one short question or claim.
        """
        self._board.open(topic)
        return {"topic": topic}

    async def on_job_stream_data(self, message: BusJobStreamDataMessage) -> None:
        if self._is_open(message.job_id):
            self._board.hear(message.source, message.data["text"])

    async def on_job_response(
        self, message: BusJobResponseMessage | BusJobResponseUrgentMessage
    ) -> None:
        if self._is_open(message.job_id):
            self._board.record_end(message.source, *_read_end(message))

    def _is_open(self, job_id: str) -> bool:
        # A debater that was stopped may send a last word, and does send a CANCELLED response. Both
        # may come when the next topic has been opened, and are not of that topic.
        return job_id in self.job_groups

    async def interrupt(self) -> None:
        """Stop the moderator and the debaters, as a voice bot does when the user speaks."""
        self._board.stop()
        self._interruption = InterruptionFrame()
        await self.queue_frame(self._interruption)

    async def interrupt_with(self, text: str) -> None:
        """Interrupt the debate and begin to answer the user's text."""
        await self.interrupt()
        self._board.moderator_asked()
        message = {"role": "user", "content": text}
        await self.queue_frame(LLMMessagesAppendFrame([message], run_llm=True))
        # An interruption overtakes a message that the LLM has not begun to answer.
        await self._board.until(lambda: self._board.moderator.state is not State.WAITING)

    def _on_frame(self, _: LLMService[Any], frame: Frame) -> None:
        if frame is self._interruption:
            self._interruption = None
        if self._interruption is not None:
            return  # The last frames of a turn that was interrupted.
        match frame:
            case LLMFullResponseStartFrame():
                self._board.moderator_starts()
            case LLMTextFrame():
                self._board.hear(self.name, frame.text)
            case FunctionCallsStartedFrame():
                self._board.moderator_listens()
            case FunctionCallResultFrame():
                # The tool has its result, so a debater that has not ended was too slow.
                self._board.close()
            case LLMFullResponseEndFrame():
                self._board.moderator_ends()
            case ErrorFrame():
                self._board.moderator_failed(frame.error)
