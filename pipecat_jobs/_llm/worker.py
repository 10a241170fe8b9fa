"""The worker that owns an LLM context and answers jobs with turns of its LLM."""

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
from pipecat_jobs._protocol.checks import check_flag
from pipecat_jobs._protocol.deadline import check_timeout
from pipecat_jobs.errors import (
    InvalidJobError,
    InvalidJobTypeError,
    LLMTurnError,
    LLMTurnInterruptedError,
    LLMTurnTimeoutError,
)


class LLMContextWorker(PipecatLLMContextWorker, LLMWorker):
    """Pipecat's ``LLMContextWorker`` with jobs that always end, and with :meth:`llm_turn`.

    An LLM turn that a job has started, with :meth:`llm_turn` or with a frame that the job's handler
    queued, ends with the job. Cancelling the job closes the provider's stream and cancels the
    functions that the LLM has called. A turn that was not started by a job goes on.

    Example::

        class Debater(LLMContextWorker):
            @job(name="argue")
            async def argue(self, message):
                text = await self.llm_turn(f"Topic: {message.payload['topic']}")
                return {"role": self.name, "text": text}


        llm = OpenAILLMService(api_key="your key")
        debater = Debater("critic_2", llm=llm)
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
        """Ask this worker's LLM and wait for its final answer.

        The messages are appended to the worker's context, and the LLM is run with the tools of the
        context, or with the tools of the worker if the context has no tools. The functions that the
        LLM calls are run, and the LLM runs on their results, as in any Pipecat pipeline, until it
        answers without a call. One turn runs at a time; the next one waits. When the task that
        awaits the turn is cancelled, e.g. because its job is cancelled, the turn is stopped at
        once.

        Args:
            messages: A user message, or a list of context messages.
            fresh: Whether to use a new context that has only these messages. Any number of such
                turns run at the same time, through the service's
                :meth:`~pipecat.services.llm_service.LLMService.run_inference`. They do not call
                functions and leave nothing in the worker's context. With the APIs of OpenAI,
                Anthropic and Google the answer is streamed, so that it stops with the job.
            stream: Whether to send the LLM's text to the job's requester as it is generated:
                ``{"text": ...}`` in stream events. The handler still returns the response.
            timeout: Seconds for the turn, including the wait for earlier turns; None for no limit.
            keep_unfinished: Whether the messages and the LLM's text so far stay in the context when
                the turn fails or is cancelled. By default they are removed.

        Returns:
            The text of the LLM's last run, the one that called no functions.

        Raises:
            LLMTurnError: If the provider or the service failed, the answer was cut off (by a token
                limit, a content filter, or the early end of the stream), or was empty.
            LLMTurnTimeoutError: If the timeout passed first.
            LLMTurnInterruptedError: If the turn was interrupted: by a user who spoke to an active
                worker, or by the end of the worker.
            InvalidJobError: If an argument is invalid; if a tool of this worker calls it without
                ``fresh=True``, because the LLM waits for that tool; or if the worker's LLM is a
                realtime (speech-to-speech) service, which decides itself when to speak.

        Example::

            class Debater(LLMContextWorker):
                @job(name="argue")
                async def argue(self, message):
                    text = await self.llm_turn(f"Topic: {message.payload['topic']}", stream=True)
                    return {"role": self.name, "text": text}
        """
        asked = _context_messages(messages)
        flags = {"fresh": fresh, "stream": stream, "keep_unfinished": keep_unfinished}
        for name, value in flags.items():
            check_flag(name, value)
        job = self.__current_job()
        if stream and job is None:
            raise InvalidJobError(
                "stream=True sends the text to the requester of the job, and this code was not "
                "called by a job's handler; leave stream out"
            )
        self.__check_llm(fresh=fresh)
        if not fresh and in_tool_call_of(self):
            raise InvalidJobError(
                f"a tool of worker '{self.name}' called llm_turn() of the LLM that waits for the "
                "tool; use fresh=True, or another worker"
            )
        seconds = check_timeout(timeout)
        deadline = asyncio.timeout(seconds)
        try:
            async with deadline:
                send = _TextSender(self, job) if stream and job is not None else None
                if fresh:
                    return await self.__fresh_turn(asked, send)
                async with self.__turns.lock:
                    return await self.__turn(asked, job, send, keep=keep_unfinished)
        except TimeoutError as error:
            if not deadline.expired():
                raise
            raise LLMTurnTimeoutError(self.name, f"it took more than {seconds:g} s") from error

    def __check_llm(self, *, fresh: bool) -> None:
        if fresh:
            method: object = getattr(self.llm.run_inference, "__func__", None)
            if method is LLMService.run_inference:
                raise InvalidJobError(
                    f"{self.llm} of worker '{self.name}' has no run_inference(), which a fresh "
                    "turn needs; use a worker with a text LLM"
                )
        elif is_speech_to_speech(self.llm):
            raise InvalidJobError(
                f"{self.llm} of worker '{self.name}' is a realtime (speech-to-speech) service: it "
                "decides itself when to speak, and does not answer llm_turn(). Let it call jobs "
                "with @job_tool, or use a worker with a text LLM"
            )

    async def __turn(
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
            # Pipecat sets them on activation, and a worker that only does jobs is never activated.
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
            await self.__stop_turn(turn, keep=keep)
            raise
        return turn.text

    async def __stop_turn(self, turn: Turn, *, keep: bool) -> None:
        def clean_up() -> None:
            if not keep:
                turn.take_out(self.context)

        # In a task of its own, so that a second cancellation of this task does not stop it.
        stopping = self.create_task(self.__turns.stop(turn, clean_up), "llm_turn_stop")
        await asyncio.wait({stopping}, timeout=self.job_cancel_grace)
        if not stopping.done():
            # It goes on: what it dropped of the conversation still has to be run again.
            logger.warning(
                f"Worker '{self.name}': its LLM turn has not stopped after "
                f"{self.job_cancel_grace:g} s; the job ends before it"
            )

    async def __fresh_turn(
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
        """Queue a frame. A turn that it starts belongs to the job whose handler queues it.

        Args:
            frame: The frame to queue.
            direction: The direction in which the frame is pushed.

        Example::

            class Debater(LLMContextWorker):
                async def on_job_request(self, message):
                    topic = {"role": "developer", "content": message.payload["topic"]}
                    await self.queue_frame(LLMMessagesAppendFrame([topic], run_llm=True))
        """
        job = self.__current_job()
        if job is not None:
            self.__turns.expect(frame, Turn(job))
        await super().queue_frame(frame, direction)

    @property
    def __turns(self) -> LLMTurns:
        assert self._llm_turns is not None
        return self._llm_turns

    def __current_job(self) -> Execution | None:
        """Find the open job of this worker whose handler called this code."""
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
        raise InvalidJobError("messages is empty; give a text, or give a list of context messages")
    for message in messages:
        if not isinstance(message, dict | LLMSpecificMessage):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidJobTypeError(
                f"a message is {message!r}; give {{'role': ..., 'content': ...}}"
            )
    # Copies, because a turn removes its messages by identity, and two turns may have the same one.
    return [copy.copy(message) for message in messages]


class _TextSender:
    """Streams an LLM's text to a job's requester; the first text starts the stream."""

    def __init__(self, worker: LLMContextWorker, job: Execution):
        self._worker = worker
        self._job_id = job.request.job_id
        self._started = False

    async def __call__(self, text: str) -> None:
        if not self._started:
            self._started = True
            await self._worker.send_job_stream_start(self._job_id)
        await self._worker.send_job_stream_data(self._job_id, {"text": text})
