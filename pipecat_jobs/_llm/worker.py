"""A job answered by an LLM: the worker that owns a context, and its turns."""

import asyncio
import copy
from collections.abc import Awaitable, Callable, Sequence

from loguru import logger
from pipecat.frames.frames import Frame, LLMMessagesAppendFrame
from pipecat.processors.aggregators.llm_context import (
    LLMContext,
    LLMContextMessage,
    LLMSpecificMessage,
    NotGiven,
)
from pipecat.processors.frame_processor import FrameDirection
from pipecat.services.llm_service import LLMService
from pipecat.workers.llm import LLMContextWorker as PipecatLLMContextWorker

from pipecat_jobs._executor.execution import Execution, current_execution
from pipecat_jobs._llm.pipeline_workers import LLMWorker
from pipecat_jobs._llm.provider import StreamedAnswer, describe_failure
from pipecat_jobs._llm.turn import Turn
from pipecat_jobs._llm.turns import LLMTurns
from pipecat_jobs._pipecat import in_tool_call_of, is_speech_to_speech
from pipecat_jobs._protocol.deadline import check_timeout
from pipecat_jobs.errors import (
    InvalidJobError,
    InvalidJobTypeError,
    LLMTurnError,
    LLMTurnInterruptedError,
    LLMTurnTimeoutError,
)


class LLMContextWorker(PipecatLLMContextWorker, LLMWorker):
    """Pipecat's ``LLMContextWorker`` with jobs that always end, and LLM turns that answer them.

    A turn of the LLM that a job has started ends with the job: by :meth:`llm_turn`, or by a frame
    that the job's handler queued. Cancelling the job closes the provider's stream and cancels the
    functions the LLM has called; a turn that no job started is left alone.
    """

    async def llm_turn(
        self,
        messages: str | Sequence[LLMContextMessage],
        *,
        fresh: bool = False,
        stream: bool = False,
        timeout: float | None = None,
        keep_unfinished: bool = False,
    ) -> str:
        """Put something to this worker's LLM and wait for what it says.

        The messages are appended to the worker's context and the LLM is run. It is offered the
        context's tools, or the worker's own where that has none; the functions it calls are run and
        answered as in any Pipecat pipeline, until it has said its last word. One turn runs at a
        time, the next waits. When the caller is cancelled, as it is when its job is, the turn is
        stopped at once.

        Args:
            messages: What to say, as the user's words or as context messages.
            fresh: Whether to use a context of its own instead, with these messages alone. Such
                turns run side by side, through the service's
                :meth:`~pipecat.services.llm_service.LLMService.run_inference`: they call no
                functions and leave nothing in the worker's context. What the APIs of OpenAI,
                Anthropic and Google answer is streamed all the same, and stops with the job.
            stream: Whether to send what the LLM says to the job's requester, as it is said:
                ``{"text": ...}`` in stream events. The job still wants its answer afterwards.
            timeout: Seconds for all of it, the wait for earlier turns included; None for no limit.
            keep_unfinished: Whether the messages, and what the LLM said to them, stay in the
                context when the turn does not end well. By default it is as if nobody had asked.

        Returns:
            What the LLM said last: after its functions have answered, if it called any.

        Raises:
            LLMTurnError: If the provider failed, cut the answer off (at a token limit, by a content
                filter, or by ending its stream early), or the LLM said nothing.
            LLMTurnTimeoutError: If the timeout passed first.
            LLMTurnInterruptedError: If something else stopped the turn: a user who spoke to an
                active worker, or the worker's end.
            InvalidJobError: If an argument cannot be used; if a tool of this worker asks, for which
                its LLM waits; or if the worker's LLM is a realtime (speech-to-speech) service,
                which speaks when it decides to.

        Example::

            class Debater(LLMContextWorker):
                @job(name="argue")
                async def argue(self, message):
                    text = await self.llm_turn(f"Topic: {message.payload['topic']}", stream=True)
                    return {"role": self.name, "text": text}
        """
        asked = _context_messages(messages)
        job = self._current_job()
        if stream and job is None:
            raise InvalidJobError(
                "stream=True sends to the requester of the job that is being handled, and none is "
                "being handled here; leave stream out"
            )
        self._check_llm(fresh=fresh)
        if not fresh and in_tool_call_of(self):
            raise InvalidJobError(
                f"a tool of worker '{self.name}' asked for a turn of the LLM that waits for the "
                "tool; use fresh=True, or ask another worker"
            )
        seconds = check_timeout(timeout)
        deadline = asyncio.timeout(seconds)
        try:
            async with deadline:
                send = _TextSender(self, job) if stream and job is not None else None
                if fresh:
                    return await self._fresh_turn(asked, send)
                async with self.__turns.lock:
                    return await self._turn(asked, job, send, keep=keep_unfinished)
        except TimeoutError as error:
            if not deadline.expired():
                raise
            raise LLMTurnTimeoutError(self.name, f"it took more than {seconds:g} s") from error

    def _check_llm(self, *, fresh: bool) -> None:
        if fresh:
            method: object = getattr(self.llm.run_inference, "__func__", None)
            if method is LLMService.run_inference:
                raise InvalidJobError(
                    f"{self.llm} of worker '{self.name}' has no run_inference(), by which a fresh "
                    "turn is answered; ask a worker with a text LLM"
                )
        elif is_speech_to_speech(self.llm):
            raise InvalidJobError(
                f"{self.llm} of worker '{self.name}' is a realtime (speech-to-speech) service: it "
                "speaks when it decides to, and does not answer llm_turn(). Let it call jobs with "
                "@job_tool, or ask a worker with a text LLM"
            )

    async def _turn(
        self,
        asked: list[LLMContextMessage],
        job: Execution | None,
        send: "_TextSender | None",
        *,
        keep: bool,
    ) -> str:
        await self.__turns.until_idle()
        if self.__turns.over:
            raise LLMTurnInterruptedError(self.name, "the worker has stopped")
        if isinstance(self.context.tools, NotGiven) and (tools := self.build_tools()):
            # Pipecat offers them on activation, which a worker that only does jobs never sees.
            self.context.set_tools(tools)
        turn = Turn(job, awaited=True)
        turn.messages.extend(asked)
        frame = LLMMessagesAppendFrame(asked, run_llm=True)
        self.__turns.expect(frame, turn)
        try:
            await super().queue_frame(frame)
            while (token := await turn.tokens.get()) is not None:
                if send is not None:
                    await send(token)
            if turn.failure is not None:
                raise turn.failure
        except BaseException:
            await self._stop_turn(turn, keep=keep)
            raise
        return turn.text

    async def _stop_turn(self, turn: Turn, *, keep: bool) -> None:
        def clean_up() -> None:
            if not keep:
                turn.take_out(self.context)

        # A task of its own, so that a second cancellation of this one does not leave half of it.
        stopping = self.create_task(self.__turns.stop(turn, clean_up), "llm_turn_stop")
        await asyncio.wait({stopping}, timeout=self.job_cancel_grace)
        if not stopping.done():
            logger.warning(f"Worker '{self.name}': its LLM turn does not stop")
            stopping.cancel()

    async def _fresh_turn(
        self, asked: list[LLMContextMessage], send: Callable[[str], Awaitable[None]] | None
    ) -> str:
        async with StreamedAnswer(send) as answer:
            try:
                text = await answer.run_inference(self.llm, LLMContext(asked))
            except Exception as error:
                raise LLMTurnError(self.name, describe_failure(error), text=answer.text) from error
        if not text or not text.strip():
            raise LLMTurnError(self.name, "the LLM gave an empty answer")
        return text

    async def queue_frame(
        self, frame: Frame, direction: FrameDirection = FrameDirection.DOWNSTREAM
    ) -> None:
        """Queue a frame; a turn that it starts belongs to the job whose handler queues it.

        Args:
            frame: The frame.
            direction: Where it goes.
        """
        job = self._current_job()
        if job is not None:
            self.__turns.expect(frame, Turn(job))
        await super().queue_frame(frame, direction)

    @property
    def __turns(self) -> LLMTurns:
        assert self._llm_turns is not None
        return self._llm_turns

    def _current_job(self) -> Execution | None:
        """The job of this worker that the running code does, if it does one that is open."""
        job = current_execution.get()
        if job is None or self.active_jobs.get(job.request.job_id) is not job.request:
            return None
        return job


def _context_messages(messages: str | Sequence[LLMContextMessage]) -> list[LLMContextMessage]:
    if isinstance(messages, str):
        empty = not messages.strip()
        messages = [{"role": "user", "content": messages}]
    elif isinstance(messages, Sequence):  # pyright: ignore[reportUnnecessaryIsInstance]
        empty = not messages
    else:
        raise InvalidJobTypeError(
            f"messages is {messages!r}; give a text, or give a list of context messages"
        )
    if empty:
        raise InvalidJobError("there is nothing to say; give a text or context messages")
    for message in messages:
        if not isinstance(message, dict | LLMSpecificMessage):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidJobTypeError(
                f"a message is {message!r}; give {{'role': ..., 'content': ...}}"
            )
    # Copies, so that a message that is asked again is told from the one of an earlier turn.
    return [copy.copy(message) for message in messages]


class _TextSender:
    """Sends what an LLM says to a job's requester, in a stream that begins with its first words."""

    def __init__(self, worker: LLMContextWorker, job: Execution):
        self._worker = worker
        self._job_id = job.request.job_id
        self._started = False

    async def __call__(self, text: str) -> None:
        if not self._started:
            self._started = True
            await self._worker.send_job_stream_start(self._job_id)
        await self._worker.send_job_stream_data(self._job_id, {"text": text})
