"""The turns of one worker's LLM: starting, waiting and stopping."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import cached_property, partial
from typing import Any

from loguru import logger
from pipecat.frames.frames import Frame, InterruptionFrame, LLMMessagesAppendFrame
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext, LLMContextMessage, NotGiven
from pipecat.services.llm_service import LLMService
from pipecat.workers.llm import LLMWorker

from pipecat_jobs._executor.execution import Execution
from pipecat_jobs._llm.function_calls import drop_calls
from pipecat_jobs._llm.parts import LLMParts, find_only_llm, find_parts, refuse_parts
from pipecat_jobs._llm.provider import StreamedAnswer, describe_failure
from pipecat_jobs._llm.result import LLMTurn
from pipecat_jobs._llm.tracker import TurnTracker
from pipecat_jobs._llm.turn import Turn
from pipecat_jobs._llm.watch import is_called_by
from pipecat_jobs._pipecat import (
    cancel_function_call,
    is_speech_to_speech,
    take_queued_function_calls,
)
from pipecat_jobs._worker.tasks import start_task
from pipecat_jobs.errors import InvalidJobError, LLMTurnError, LLMTurnInterruptedError

OnText = Callable[[str], Awaitable[None]]


class LLMTurns:
    """The turns of one worker's LLM; ``on_failure`` is called when a job's turn fails."""

    def __init__(
        self,
        worker: PipelineWorker,
        on_failure: Callable[[Execution, LLMTurnError], None],
        cancel_grace: float,
    ):
        self._worker = worker
        self._on_failure = on_failure
        self._cancel_grace = cancel_grace
        self._lock = asyncio.Lock()
        """Held by the turn that is asked and runs; the next waits in order of arrival."""

    @cached_property
    def _tracker(self) -> TurnTracker | None:
        # Looked up late, because a worker gets its turns before its pipeline is built.
        found = find_parts(self._worker)
        return TurnTracker(found[0], self._on_failure) if len(found) == 1 else None

    @property
    def runs_for_job(self) -> bool:
        """Whether the LLM runs for a job, and not for the conversation."""
        running = self._tracker.running if self._tracker is not None else None
        return running is not None and running.job is not None

    def awaits(self, call: str) -> bool:
        """Return whether a turn of a job, or one that code awaits, made a function call."""
        turn = self._tracker.find_turn(call) if self._tracker is not None else None
        return turn is not None and turn.owned

    def follow(self) -> None:
        """Begin to follow the runs of the LLM, if the worker has one between two aggregators."""
        _ = self._tracker

    # -- asking ------------------------------------------------------------------------------

    async def ask(
        self,
        messages: list[LLMContextMessage],
        turn: Turn,
        on_text: OnText | None = None,
        *,
        keep: bool,
    ) -> LLMTurn:
        """Have a turn on messages that are appended to the context; return what it gives.

        ``keep`` tells whether its messages stay in the context when it does not succeed.
        """
        tracker = self._check_tracker()
        async with self._lock:
            await self._until(tracker, lambda: not tracker.has_runs)
            if tracker.over:
                raise LLMTurnInterruptedError(self._worker.name, "the worker has stopped")
            self._set_tools(tracker.parts.context)
            turn.messages.extend(messages)
            frame = LLMMessagesAppendFrame(messages, run_llm=True)
            tracker.expect(frame, turn)
            try:
                # Not the worker's own method, which would start a turn of the job that runs.
                await PipelineWorker.queue_frame(self._worker, frame)
                while (token := await turn.tokens.get()) is not None:
                    if on_text is not None:
                        await on_text(token)
                if turn.failure is not None:
                    raise turn.failure
            except BaseException:
                clean_up = None if keep else partial(turn.take_out, tracker.parts.context)
                await self._stop_soon(tracker, turn, clean_up)
                raise
            return turn.result

    async def ask_fresh(
        self, messages: list[LLMContextMessage], on_text: OnText | None = None
    ) -> LLMTurn:
        """Run the LLM once on a context of its own; return what it gives."""
        llm, name = self._check_fresh(), self._worker.name
        async with StreamedAnswer(on_text) as answer:
            try:
                text = await answer.run_inference(llm, LLMContext(messages))
            except Exception as error:
                raise LLMTurnError(name, describe_failure(error), text=answer.text) from error
        if not text or not text.strip():
            raise LLMTurnError(name, "the LLM gave an empty answer")
        return LLMTurn(text, stop_reason=answer.reason)

    def _check_tracker(self) -> TurnTracker:
        """Refuse a turn that the worker's LLM cannot have."""
        tracker = self._tracker
        if tracker is None:
            raise refuse_parts(self._worker, find_parts(self._worker))
        llm, name = tracker.parts.llm, self._worker.name
        if is_speech_to_speech(llm):
            raise InvalidJobError(
                f"{llm} of worker '{name}' is a realtime (speech-to-speech) service: it "
                "decides itself when to speak, so llm_turn() and hear() cannot have it answer. Let "
                "it call jobs with @job_tool, or use a worker with a text LLM"
            )
        if is_called_by(llm):
            raise InvalidJobError(
                f"a tool of worker '{name}' called llm_turn() or hear() of the LLM that waits for "
                "the tool; use llm_turn(..., fresh=True), or another worker"
            )
        return tracker

    def _check_fresh(self) -> LLMService[Any]:
        """Refuse a fresh turn that the worker's LLM cannot have."""
        llm = self._tracker.parts.llm if self._tracker is not None else find_only_llm(self._worker)
        method: object = getattr(llm.run_inference, "__func__", None)
        if method is LLMService.run_inference:
            raise InvalidJobError(
                f"{llm} of worker '{self._worker.name}' has no run_inference(), which a fresh "
                "turn needs; use a worker with a text LLM"
            )
        return llm

    def _set_tools(self, context: LLMContext) -> None:
        worker = self._worker
        if (
            isinstance(worker, LLMWorker)
            and isinstance(context.tools, NotGiven)
            and (tools := worker.build_tools())
        ):
            # Pipecat sets them on activation, and a worker that only does jobs is never activated.
            context.set_tools(tools)

    def expect(self, frame: Frame, turn: Turn) -> None:
        """Have a frame that is about to be queued start a turn, if the frame runs the LLM."""
        if self._tracker is not None:
            self._tracker.expect(frame, turn)

    async def _until(self, tracker: TurnTracker, holds: Callable[[], bool]) -> None:
        """Wait until something holds, or every frame has passed through the pipeline.

        The second ends the wait for a run that is lost because a processor dropped its frame.
        """
        worker = self._worker
        flushed = False

        async def flush() -> None:
            nonlocal flushed
            flushed = await worker.flush_pipeline()
            tracker.rested.set()

        while not holds() and not flushed:
            tracker.rested.clear()
            flushing = start_task(worker, flush(), "llm_turn_flush")
            try:
                await tracker.rested.wait()
            finally:
                if not flushing.done():
                    flushing.cancel()

    # -- stopping ----------------------------------------------------------------------------

    async def stop_job(self, job: Execution) -> None:
        """Stop the turns of a job that was cancelled or failed; wait until nothing of them is left.

        An inactive worker that runs one such job at a time generates only for that job, even if no
        frame of the job was seen. Its LLM is therefore stopped even when the job has no turn.
        """
        worker, tracker = self._worker, self._tracker
        if tracker is None:
            return
        turns = [turn for turn in tracker.open if turn.job is job]
        if turns:
            await asyncio.gather(*(self._stop(tracker, turn) for turn in turns))
            return
        alone = job.slots is not None and job.slots.has_turn and not worker.active
        if alone and worker.started_at and not worker.has_finished():
            await worker.queue_frame(InterruptionFrame())
            await worker.flush_pipeline()

    async def _stop_soon(
        self, tracker: TurnTracker, turn: Turn, clean_up: Callable[[], None] | None
    ) -> None:
        """Stop a turn; wait for that no longer than the grace period."""
        # In a task of its own, so that a second cancellation of this task does not stop it.
        stopping = start_task(self._worker, self._stop(tracker, turn, clean_up), "llm_turn_stop")
        await asyncio.wait({stopping}, timeout=self._cancel_grace)
        if not stopping.done():
            # It goes on: what it dropped of the conversation still has to be run again.
            logger.warning(
                f"Worker '{self._worker.name}': its LLM turn has not stopped after "
                f"{self._cancel_grace:g} s; the job ends before it"
            )

    async def _stop(
        self, tracker: TurnTracker, turn: Turn, clean_up: Callable[[], None] | None = None
    ) -> None:
        """Stop a turn, and wait until nothing of it is left in the pipeline.

        An ``InterruptionFrame`` closes the provider's stream and ends the speech. It is sent only
        while the LLM runs for this turn, or its text is on its way to the context; a run that waits
        behind another turn's is stopped when it begins.
        ``clean_up`` is called once nothing of the turn is left, before the LLM runs for another.
        """
        parts = tracker.parts
        turn.stop()
        try:
            # Before the interruption, because it lets the next call in the queue begin.
            await _drop_waiting_calls(parts, turn)
            if tracker.running is turn or (tracker.running is None and turn.texts):
                passed = await tracker.interrupt(turn)
                await passed.wait()
                await _drop_waiting_calls(parts, turn)
            for call in list(turn.calls):
                await cancel_function_call(parts.llm, call)
            tracker.forgo_owed_run(turn)
            if turn.runs or turn.calls:
                await self._until(tracker, lambda: turn.is_over)
        finally:
            tracker.close(turn)
        if clean_up is not None:
            clean_up()
        if turn.dropped_others:
            turn.dropped_others = False
            await parts.user_aggregator.push_context_frame()

    def end(self) -> None:
        """End every turn: the worker stops."""
        if self._tracker is not None:
            self._tracker.end()


async def _drop_waiting_calls(parts: LLMParts, turn: Turn) -> None:
    calls = take_queued_function_calls(parts.llm, lambda call: call.tool_call_id in turn.calls)
    await drop_calls(parts.llm, calls)
