"""The turns of one worker's LLM: starting, waiting and stopping."""

import asyncio
from collections.abc import Callable

from pipecat.frames.frames import Frame, InterruptionFrame
from pipecat.workers.llm import LLMContextWorker

from pipecat_jobs._executor.execution import Execution
from pipecat_jobs._llm.function_calls import drop_calls
from pipecat_jobs._llm.tracker import TurnTracker
from pipecat_jobs._llm.turn import Turn
from pipecat_jobs._pipecat import cancel_function_call, take_queued_function_calls
from pipecat_jobs._worker.tasks import start_task
from pipecat_jobs.errors import LLMTurnError


class LLMTurns:
    """The turns of one worker's LLM; ``on_failure`` is called when a job's turn fails."""

    def __init__(
        self,
        worker: LLMContextWorker,
        on_failure: Callable[[Execution, LLMTurnError], None],
    ):
        self.lock = asyncio.Lock()
        """Held by the ``llm_turn()`` that runs; the next waits in order of arrival."""
        self._worker = worker
        self._tracker = TurnTracker(worker, on_failure)

    @property
    def over(self) -> bool:
        """Whether the worker has stopped, so that its LLM is never run again."""
        return self._tracker.over

    def expect(self, frame: Frame, turn: Turn) -> None:
        """Have a frame that is about to be queued start a turn, if the frame runs the LLM."""
        self._tracker.expect(frame, turn)

    async def until_idle(self) -> None:
        """Wait until no turn has a run that the LLM has not finished."""
        worker, tracker = self._worker, self._tracker
        flushed = False

        async def flush() -> None:
            nonlocal flushed
            flushed = await worker.flush_pipeline()
            tracker.rested.set()

        while tracker.has_runs and not flushed:
            tracker.rested.clear()
            # A flush ends the wait for a run that is lost because a processor dropped its frame.
            flushing = start_task(worker, flush(), "llm_turn_flush")
            try:
                await tracker.rested.wait()
            finally:
                if not flushing.done():
                    flushing.cancel()

    async def stop_job(self, job: Execution) -> None:
        """Stop the turns of a job that was cancelled or failed; wait until nothing of them is left.

        An inactive worker that runs one such job at a time generates only for that job, even if no
        frame of the job was seen. Its LLM is therefore stopped even when the job has no turn.
        """
        worker = self._worker
        turns = [turn for turn in self._tracker.open if turn.job is job]
        if turns:
            await asyncio.gather(*(self.stop(turn) for turn in turns))
            return
        alone = job.slots is not None and job.slots.has_turn and not worker.active
        if alone and worker.started_at and not worker.has_finished():
            await worker.queue_frame(InterruptionFrame())
            await worker.flush_pipeline()

    async def stop(self, turn: Turn, clean_up: Callable[[], None] | None = None) -> None:
        """Stop a turn, and wait until nothing of it is left in the pipeline.

        An ``InterruptionFrame`` closes the provider's stream. It is sent only while the LLM runs
        for this turn; a run that waits behind another turn's is stopped when it begins.
        ``clean_up`` is called once nothing of the turn is left, before the LLM runs for another.
        """
        llm, tracker = self._worker.llm, self._tracker
        turn.stop()
        try:
            # Before the interruption, because it lets the next call in the queue begin.
            await self._drop_waiting_calls(turn)
            if tracker.running is turn:
                passed = await tracker.interrupt(turn)
                await passed.wait()
                await self._drop_waiting_calls(turn)
            for call in list(turn.calls):
                await cancel_function_call(llm, call)
            tracker.forgo_owed_run(turn)
            if turn.runs or turn.calls:
                await turn.until_closed()
        finally:
            tracker.close(turn)
        if clean_up is not None:
            clean_up()
        if turn.dropped_others:
            turn.dropped_others = False
            await self._worker.user_aggregator.push_context_frame()

    def end(self) -> None:
        """End every turn: the worker stops."""
        self._tracker.end()

    async def _drop_waiting_calls(self, turn: Turn) -> None:
        llm = self._worker.llm
        calls = take_queued_function_calls(llm, lambda call: call.tool_call_id in turn.calls)
        await drop_calls(llm, calls)
