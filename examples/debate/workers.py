"""The debate: a moderator whose LLM has a tool, and the three debaters that tool asks.

The user gives the moderator a topic. Its LLM calls ``debate``, which asks all debaters at once with
a job group; each streams its argument back while its own LLM writes it. When the user interrupts,
Pipecat cancels the tool, the job group cancels its jobs, and each job stops its debater's LLM.
"""

import asyncio
from typing import Any

from pipecat.bus.messages import BusJobRequestMessage
from pipecat.frames.frames import (
    ErrorFrame,
    Frame,
    FunctionCallsStartedFrame,
    InterruptionFrame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    LLMMessagesAppendFrame,
    LLMMessagesUpdateFrame,
    LLMTextFrame,
)
from pipecat.services.llm_service import FunctionCallParams, LLMService

from examples.debate.board import Board, State
from pipecat_jobs import JobGroupEvent, JobTimeoutError, LLMContextWorker, tool

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


class Debater(LLMContextWorker):
    """Argues one side of a topic, and streams what its LLM says to whoever asked for it.

    When the job is cancelled, ``on_job_request()`` is cancelled and the LLM's turn is interrupted,
    which closes the connection to the provider. The next job starts once all of that is over.
    """

    async def on_job_request(self, message: BusJobRequestMessage) -> None:
        await super().on_job_request(message)
        frames: asyncio.Queue[Frame] = asyncio.Queue()

        def on_frame(_: LLMService[Any], frame: Frame) -> None:
            frames.put_nowait(frame)

        self.llm.add_event_handler("on_before_push_frame", on_frame)
        try:
            topic = {"role": "user", "content": f"Topic: {message.payload['topic']}"}
            await self.queue_frame(LLMMessagesUpdateFrame([topic], run_llm=True))
            while not isinstance(frame := await frames.get(), LLMFullResponseEndFrame):
                if isinstance(frame, LLMTextFrame):
                    await self.send_job_stream_data(message.job_id, {"token": frame.text})
                elif isinstance(frame, ErrorFrame):
                    raise RuntimeError(frame.error)
        finally:
            self.llm.remove_event_handler("on_before_push_frame", on_frame)
        await self.send_job_stream_end(message.job_id)


class Moderator(LLMContextWorker):
    """Talks with the user, and has a topic debated before it says anything about it."""

    def __init__(self, llm: LLMService[Any], board: Board):
        super().__init__("moderator", llm=llm, active=True)
        self._board = board
        self._floor = asyncio.Lock()  # For one debate at a time, should the LLM ask for two.
        self._interruption: InterruptionFrame | None = None
        llm.add_event_handler("on_before_push_frame", self._on_frame)

    async def interrupt(self) -> None:
        """Stop, and have the debaters stop, as a voice bot does when the user speaks."""
        self._board.moderator_stopped()
        self._interruption = InterruptionFrame()
        await self.queue_frame(self._interruption)

    async def hear(self, text: str) -> None:
        """Drop everything and answer what the user said."""
        await self.interrupt()
        self._board.moderator_asked()
        message = {"role": "user", "content": text}
        await self.queue_frame(LLMMessagesAppendFrame([message], run_llm=True))
        # An interruption overtakes a message that the LLM has not begun to answer.
        await self._board.until(lambda: self._board.moderator.state is not State.WAITING)

    @tool
    async def debate(self, params: FunctionCallParams, topic: str) -> None:
        """Have an advocate, a critic and an analyst argue a topic side by side.

        Args:
            params: How Pipecat calls a tool.
            topic: The topic, as one short question or claim.
        """
        group = self.job_group(
            *DEBATERS, payload={"topic": topic}, timeout=60, cancel_on_error=False
        )
        try:
            async with self._floor, group:
                self._board.open(topic)
                async for event in group:
                    if event.type == JobGroupEvent.STREAM_DATA:
                        self._board.hear(event.worker_name, event.data["token"])
                    self._board.settle(group.outcomes)
        except JobTimeoutError:
            pass  # Who was too slow has that as its outcome; the others have had their say.
        finally:
            self._board.close(group.outcomes)
        await params.result_callback(self._board.arguments)

    def _on_frame(self, _: LLMService[Any], frame: Frame) -> None:
        if frame is self._interruption:
            self._interruption = None
        if self._interruption is not None:
            return  # The last words of a turn that is over.
        match frame:
            case LLMFullResponseStartFrame():
                self._board.moderator_starts()
            case LLMTextFrame():
                self._board.hear(self.name, frame.text)
            case FunctionCallsStartedFrame():
                self._board.moderator_listens()
            case LLMFullResponseEndFrame():
                self._board.moderator_ends()
            case ErrorFrame():
                self._board.moderator_failed(frame.error)
