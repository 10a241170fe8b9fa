"""Pipecat's workers without an LLM context of their own, with the mixin added."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from pipecat.frames.frames import Frame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker as PipecatPipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContextMessage
from pipecat.processors.frame_processor import FrameDirection
from pipecat.workers.llm import LLMWorker as PipecatLLMWorker

from pipecat_jobs._executor.execution import Execution, current_execution
from pipecat_jobs._llm.asking import TextSender, check_messages
from pipecat_jobs._llm.conversing import Conversing
from pipecat_jobs._llm.mixin import JobsMixin
from pipecat_jobs._llm.parts import add_context
from pipecat_jobs._llm.result import LLMTurn
from pipecat_jobs._llm.steers import TurnSteers
from pipecat_jobs._llm.turn import Turn
from pipecat_jobs._llm.turns import LLMTurns
from pipecat_jobs._protocol.checks import check_count, check_flag, check_text
from pipecat_jobs._protocol.deadline import check_timeout
from pipecat_jobs.errors import InvalidJobError, LLMTurnTimeoutError

# Each is a subclass of the previous one, as in Pipecat, so that isinstance() checks go on working.


class BaseWorker(JobsMixin):
    """Pipecat's ``BaseWorker`` with jobs that always end: a worker without a pipeline.

    See :class:`~pipecat_jobs.JobsMixin` for the class attributes that configure its jobs.

    Example::

        class Library(BaseWorker):
            @job(name="find_book")
            async def find_book(self, message):
                return {"shelf": f"{message.payload['title']} is on shelf 7"}


        await self.add_workers(Library("library"))
        found = await self.job("library", name="find_book", payload={"title": "Emma"})
        print(found["shelf"])
    """


class PipelineWorker(PipecatPipelineWorker, Conversing, BaseWorker):
    """Pipecat's ``PipelineWorker`` with jobs that always end: a worker with a pipeline of yours.

    Where the pipeline has an LLM between two aggregators, the worker can have LLM turns too: with
    :meth:`llm_turn`, with :meth:`hear`, and with a frame that a job's handler queues.

    Example::

        from pipecat.pipeline.pipeline import Pipeline
        from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair


        @job_tool("wiki", job="research")
        async def look_up(topic: str):
            '''Look a topic up in an encyclopedia.'''
            return {"topic": topic}


        llm = OpenAILLMService(api_key="your key")
        user, assistant = LLMContextAggregatorPair(LLMContext(tools=[look_up]))
        bot = PipelineWorker(Pipeline([user, llm, assistant]), name="bot")
    """

    async def llm_turn(
        self,
        messages: str | Sequence[LLMContextMessage],
        *,
        fresh: bool = False,
        stream: bool = False,
        timeout: float | None = None,
        keep_unfinished: bool = False,
        max_runs: int | None = None,
        steerable: bool = False,
    ) -> LLMTurn:
        """Ask this worker's LLM and wait for its final answer.

        The messages are appended to the context of the LLM, and the LLM is run with the tools of
        the context, or with the tools of the worker if the context has no tools. The functions that
        the LLM calls are run, and the LLM runs on their results, as in any Pipecat pipeline, until
        it answers without a call. One turn runs at a time; the next one waits. When the task that
        awaits the turn is cancelled, e.g. because its job is cancelled, the turn is stopped at
        once.

        The worker is an ``LLMContextWorker``, an ``LLMWorker`` that is not bridged and whose
        pipeline is the LLM alone, or its pipeline has one LLM between the two aggregators of a
        context; ``fresh=True`` needs no more than one LLM. What follows the LLM in the pipeline
        gets the text of the turn as that of any run: a bot with text-to-speech says it, unless the
        turn is fresh.

        Args:
            messages: A user message, or a list of context messages.
            fresh: Whether to use a new context that has only these messages. Any number of such
                turns run at the same time, through the service's
                :meth:`~pipecat.services.llm_service.LLMService.run_inference`. They do not call
                functions, are not spoken, and leave nothing in the worker's context. With the APIs
                of OpenAI, Anthropic and Google the answer is streamed, so that it stops with the
                job.
            stream: Whether to send the LLM's text to the job's requester as it is generated:
                ``{"text": ...}`` in stream events. The handler still returns the response.
            timeout: Seconds for the turn, including the wait for earlier turns; None for no limit.
            keep_unfinished: Whether the messages and the LLM's text so far stay in the context when
                the turn fails or is cancelled. By default they are removed.
            max_runs: How many times the LLM may run in the turn, from 1; 1 leaves no run on the
                results of functions. None for no limit.
            steerable: Whether the turn takes the steers of its job: each enters the context as a
                user message once the current run or function is done, and the LLM runs on it.
                ``{"text": ...}`` is given as that text, other data as JSON. Not with ``fresh``.

        Returns:
            The text of the LLM's last run, the one that called no functions, as an
            :class:`~pipecat_jobs.LLMTurn`: a ``str`` with ``calls``, ``stop_reason`` and ``runs``.

        Raises:
            LLMTurnError: If the provider or the service failed, the answer was cut off (by a token
                limit, a content filter, or the early end of the stream), or was empty; or if the
                LLM called functions in the last run that ``max_runs`` allows, which are cancelled.
            LLMTurnTimeoutError: If the timeout passed first.
            LLMTurnInterruptedError: If the turn was interrupted: by a user who spoke to the worker,
                or by the end of the worker.
            InvalidJobError: If an argument is invalid; if the pipeline does not have exactly one
                LLM between two aggregators; if a tool of this worker calls it without
                ``fresh=True``, because the LLM waits for that tool; or if the worker's LLM is a
                realtime (speech-to-speech) service, which decides itself when to speak.

        Example::

            class Debater(LLMContextWorker):
                @job(name="argue")
                async def argue(self, message):
                    text = await self.llm_turn(f"Topic: {message.payload['topic']}", stream=True)
                    return {"role": self.name, "text": text}
        """
        asked = check_messages(messages)
        flags = {"fresh": fresh, "stream": stream, "keep_unfinished": keep_unfinished}
        flags["steerable"] = steerable
        for name, value in flags.items():
            check_flag(name, value)
        if max_runs is not None:
            check_count("max_runs", max_runs, "how many times the LLM may run, or None")
        job = self.__current_job()
        if stream and job is None:
            raise InvalidJobError(
                "stream=True sends the text to the requester of the job, and this code was not "
                "called by a job's handler; leave stream out"
            )
        if steerable and job is None:
            raise InvalidJobError(
                "steerable=True takes the steers of the job, and this code was not called by a "
                "job's handler; leave steerable out"
            )
        if steerable and fresh:
            raise InvalidJobError(
                "fresh=True runs the LLM once, and steerable=True runs it again for a steer; give "
                "one of them"
            )
        on_text = TextSender(self, job.request.job_id) if stream and job is not None else None
        async with self.__within(timeout):
            if fresh:
                return await self.__turns.ask_fresh(asked, on_text)
            steers = TurnSteers(job) if steerable and job is not None else None
            turn = Turn(job, awaited=True, max_runs=max_runs, steers=steers)
            return await self.__turns.ask(asked, turn, on_text, keep=keep_unfinished)

    async def hear(self, text: str, *, timeout: float | None = None) -> LLMTurn:
        """Have this worker's LLM answer a text, as if the user had said it.

        It is for tests and for bots that are written to. The text becomes a user message in the
        context, and the LLM is run, once an earlier turn has ended: nothing is interrupted. The
        conversation stays in the context whatever happens, and the turn does not belong to a job.

        Args:
            text: What the user says.
            timeout: Seconds until the answer, including the wait for earlier turns; None for no
                limit.

        Returns:
            What the bot says to it, after the functions that the LLM called have run: the same
            :class:`~pipecat_jobs.LLMTurn` as of :meth:`llm_turn`. Functions in the background
            (``cancel_on_interruption=False``) are waited for only if the bot says nothing beside
            their calls; what it says to their results later is not returned.

        Raises:
            LLMTurnError: If the LLM gave no complete answer; see :meth:`llm_turn`.
            LLMTurnTimeoutError: If the timeout passed first.
            LLMTurnInterruptedError: If the user interrupted the bot, or the worker ended.
            InvalidJobError: As of :meth:`llm_turn`.

        Example::

            llm = OpenAILLMService(api_key="your key")
            bot = LLMContextWorker("bot", llm=llm)


            async def chat():
                while text := await asyncio.to_thread(input, "You: "):
                    print("Bot:", await bot.hear(text))
        """
        heard = check_messages(check_text("text", text, "what the user says, as a string"))
        async with self.__within(timeout):
            return await self.__turns.ask(heard, Turn(awaited=True, heard=True), keep=True)

    async def queue_frame(
        self, frame: Frame, direction: FrameDirection = FrameDirection.DOWNSTREAM
    ) -> None:
        """Queue a frame. An LLM turn that it starts belongs to the job whose handler queues it.

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

    @asynccontextmanager
    async def __within(self, timeout: float | None) -> AsyncGenerator[None]:
        seconds = check_timeout("timeout", timeout)
        deadline = asyncio.timeout(seconds)
        try:
            async with deadline:
                yield
        except TimeoutError as error:
            if not deadline.expired():
                raise
            raise LLMTurnTimeoutError(self.name, f"it took more than {seconds:g} s") from error

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


class _PipelineWithContext(PipelineWorker):
    """Gives a pipeline that is an LLM alone a context, for the turns of jobs."""

    # A base of LLMWorker, behind Pipecat's class, because the pipeline arrives here whichever
    # class between the two has built it.
    def __init__(self, pipeline: Pipeline, **options: Any):
        if options.get("bridged") is None:
            pipeline = add_context(pipeline)
        super().__init__(pipeline, **options)


class LLMWorker(PipecatLLMWorker, _PipelineWithContext):
    """Pipecat's ``LLMWorker`` with jobs that always end: a worker with an LLM service.

    Where it is not bridged and its pipeline is the LLM alone, it has a context of its own for
    :meth:`llm_turn` and :meth:`hear`. A bridged one has turns with ``fresh=True`` alone.

    Example::

        class Host(LLMWorker):
            @job_tool("wiki", job="research", timeout=30)
            async def look_up(self, topic: str):
                '''Look a topic up in an encyclopedia.'''
                return {"topic": topic}


        llm = OpenAILLMService(api_key="your key")
        host = Host("host", llm=llm)
    """
