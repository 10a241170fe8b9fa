"""Follows the runs of one worker's LLM, and finds the turn to which each run belongs.

Pipecat runs an LLM when an ``LLMContextFrame`` reaches it. The two aggregators around the LLM make
these frames, and their public processor events show for which request they make each one.
"""

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from pipecat.frames.frames import (
    BotStoppedSpeakingFrame,
    CancelFrame,
    ControlFrame,
    ErrorFrame,
    Frame,
    FunctionCallCancelFrame,
    FunctionCallInProgressFrame,
    FunctionCallResultFrame,
    FunctionCallsStartedFrame,
    InterruptionFrame,
    LLMContextFrame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    LLMMessagesAppendFrame,
    LLMMessagesTransformFrame,
    LLMMessagesUpdateFrame,
    LLMRunFrame,
    LLMTextFrame,
    UserStoppedSpeakingFrame,
)
from pipecat.processors.aggregators.llm_context import LLMSpecificMessage
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.services.llm_service import FunctionCallRunnerItem

from pipecat_jobs._executor.execution import Execution, calling_job
from pipecat_jobs._llm.function_calls import drop_calls
from pipecat_jobs._llm.parts import LLMParts
from pipecat_jobs._llm.provider import Answer, AnswerCutError, describe_failure
from pipecat_jobs._llm.turn import Turn, TurnState
from pipecat_jobs._pipecat import forgo_owed_run, owes_run, take_queued_function_calls
from pipecat_jobs._protocol.deadline import current_deadline
from pipecat_jobs._protocol.recent import Recent
from pipecat_jobs.errors import LLMTurnError, LLMTurnInterruptedError

_RUNNING_FRAMES = (LLMRunFrame, LLMContextFrame)
_MESSAGE_FRAMES = (LLMMessagesAppendFrame, LLMMessagesUpdateFrame, LLMMessagesTransformFrame)
_CALL_END_FRAMES = (FunctionCallResultFrame, FunctionCallCancelFrame)

#: The frames for which an aggregator may run the LLM.
_CAUSES = (*_RUNNING_FRAMES, *_MESSAGE_FRAMES, *_CALL_END_FRAMES, BotStoppedSpeakingFrame)


@dataclass(frozen=True, slots=True)
class _Cause:
    """The frame for which an aggregator may run the LLM."""

    turn: Turn | None = None
    """The turn it belongs to."""
    counted: bool = False
    """Whether the turn's number of runs already includes the run."""


#: The frame that an aggregator's task is processing; None for a frame that does not run the LLM.
_cause: ContextVar[_Cause | None] = ContextVar("pipecat_jobs_turn", default=None)


@dataclass(slots=True, eq=False)
class _Interruption:
    """An ``InterruptionFrame`` that stops a turn, on its way."""

    frame: InterruptionFrame
    turn: Turn
    passed: asyncio.Event = field(default_factory=asyncio.Event)


class TurnTracker:
    """Follows the turns of one worker's LLM; ``on_failure`` is called when a job's turn fails.

    It is called before the pipeline passes on the frame that reports the turn's end.
    """

    def __init__(
        self,
        parts: LLMParts,
        on_failure: Callable[[Execution, LLMTurnError], None],
    ):
        self.parts = parts
        self.open: set[Turn] = set()
        """The turns that have something left in the pipeline."""
        self.rested = asyncio.Event()
        """Set when a turn has no more runs."""
        self.over = False
        """Whether the worker has stopped, so that its LLM is never run again."""
        self.running: Turn | None = None
        """The turn for which the LLM generates."""
        self._on_failure = on_failure
        self._running_task: asyncio.Task[object] | None = None
        self._latest: Turn | None = None
        """The turn of the latest run."""
        self._answer = Answer(must_be_whole=False)
        """The provider's answer to the latest run."""
        self._owed: list[Turn] = []
        """Turns with a run that the aggregator has put off; their number of runs includes it."""
        self._steered: list[Turn] = []
        """Turns with a run that is to be requested for their steers; their runs include it."""
        self._spoken: Turn | None = None
        """The turn whose text the aggregator is collecting."""
        self._before_spoken: set[int] = set()
        """Ids of the messages that were in the context when the aggregator began to collect."""
        self._interruptions: dict[int, _Interruption] = {}
        #: By frame id. Bounded, because frames that an interruption drops are never removed.
        self._requests: Recent[int, Turn] = Recent()
        self._starts: Recent[int, Turn] = Recent()
        self._ends: Recent[int, Turn] = Recent()
        self._calls: dict[str, Turn] = {}
        for aggregator in (parts.user_aggregator, parts.assistant_aggregator):
            aggregator.add_event_handler("on_before_process_frame", self._before_aggregating)
            aggregator.add_event_handler("on_before_push_frame", self._before_leaving_aggregator)
        parts.llm.add_event_handler("on_before_process_frame", self._before_running)
        parts.llm.add_event_handler("on_before_push_frame", self._before_leaving_llm)
        parts.llm.add_event_handler("on_after_process_frame", self._after_running)
        parts.llm.add_event_handler("on_completion_timeout", self._on_completion_timeout)
        parts.assistant_aggregator.add_event_handler(
            "on_after_process_frame", self._after_aggregating
        )

    @property
    def has_runs(self) -> bool:
        """Whether a turn has a run that the LLM has not finished."""
        return any(turn.runs for turn in self.open)

    def expect(self, frame: Frame, turn: Turn) -> None:
        """Have a frame that is about to be queued start a turn, if the frame runs the LLM."""
        if isinstance(frame, _RUNNING_FRAMES) or (
            isinstance(frame, _MESSAGE_FRAMES) and frame.run_llm
        ):
            self._requests.remember(frame.id, turn)
            self.open.add(turn)
            turn.runs += 1
            if turn.job is not None:
                turn.job.turn_failure = None

    def find_turn(self, call: str) -> Turn | None:
        """Find the turn that made a function call, while the call has no result."""
        return self._calls.get(call)

    async def interrupt(self, turn: Turn) -> asyncio.Event:
        """Interrupt the LLM's run of a turn; the event is set once the interruption has passed."""
        for under_way in self._interruptions.values():
            if under_way.turn is turn:
                return under_way.passed
        interruption = _Interruption(InterruptionFrame(), turn)
        self._interruptions[interruption.frame.id] = interruption
        # Queued at the LLM itself, because the LLM's next run must not begin before it arrives. The
        # processors before the LLM, the user's side of the conversation, are not interrupted.
        await self.parts.llm.queue_frame(interruption.frame)
        return interruption.passed

    def forgo_owed_run(self, turn: Turn) -> None:
        """Have the aggregator drop a run that it has put off, if it is for this turn only."""
        if turn not in self._owed:
            return
        self._owed.remove(turn)
        turn.runs -= 1
        if not self._owed:
            forgo_owed_run(self.parts.assistant_aggregator)

    def close(self, turn: Turn) -> None:
        """Remove a turn that has nothing left in the pipeline."""
        for call in turn.calls:
            self._calls.pop(call, None)
        self.open.discard(turn)
        self._owed = [owed for owed in self._owed if owed is not turn]
        turn.close()
        self.rested.set()

    def end(self) -> None:
        """End every turn: the worker stops."""
        self.over, self.running = True, None
        for interruption in self._interruptions.values():
            interruption.passed.set()
        for turn in list(self.open):
            self._fail(turn, self._interrupted(turn, "the worker stopped"))
            self.close(turn)

    # -- the aggregators, before and after the LLM -------------------------------------------

    def _before_aggregating(self, aggregator: FrameProcessor, frame: Frame) -> None:
        if not isinstance(frame, _CAUSES):
            _cause.set(None)
        elif isinstance(frame, _CALL_END_FRAMES):
            _cause.set(_Cause(self._calls.get(frame.tool_call_id)))
        else:
            _cause.set(_Cause(self._requests.take(frame.id), counted=True))
        if aggregator is not self.parts.assistant_aggregator:
            return
        if isinstance(frame, LLMFullResponseStartFrame):
            self._spoken = self._starts.take(frame.id)
            self._before_spoken = {id(message) for message in self.parts.context.messages}

    def _before_leaving_aggregator(self, aggregator: FrameProcessor, frame: Frame) -> None:
        cause = _cause.get()
        # Without a cause, the frame is a copy of the context on its way downstream, or the run does
        # not belong to a job.
        if cause is None or not isinstance(frame, LLMContextFrame):
            return
        turn, counted = cause.turn, cause.counted
        if self._owed and aggregator is self.parts.assistant_aggregator:
            # One run answers all of them; its text goes to the turn that llm_turn() waits for.
            turn = max(self._owed, key=lambda owed: (owed.awaited, owed.owned))
            counted = True
            rest, self._owed = [owed for owed in self._owed if owed is not turn], []
            for other in rest:
                other.runs -= 1
                self._follow(other)
        if turn is None:
            return
        self._requests.remember(frame.id, turn)
        if turn.is_well:
            turn.put_in_steers(self.parts.context)
        if not counted:
            turn.runs += 1
        self._follow(turn)

    async def _after_aggregating(self, _: FrameProcessor, frame: Frame) -> None:
        match frame:
            case LLMFullResponseEndFrame():
                self._note_spoken()
                turn = self._ends.take(frame.id)
                if turn is not None:
                    turn.runs, turn.texts = max(0, turn.runs - 1), max(0, turn.texts - 1)
                    self._follow(turn)
            case FunctionCallCancelFrame():
                self._note_owed(frame.tool_call_id)
                self._settle_call(frame.tool_call_id, "CANCELLED")
            case FunctionCallResultFrame():
                self._note_owed(frame.tool_call_id)
                if frame.properties is None or frame.properties.is_final:
                    self._settle_call(frame.tool_call_id, frame.result)
            case InterruptionFrame():
                self._note_spoken()
                for turn in list(self.open):
                    if turn.failure is not None or not turn.owned:
                        turn.runs = turn.texts = 0
                        self._follow(turn)
                if (own := self._interruptions.pop(frame.id, None)) is not None:
                    own.passed.set()
            case _:
                pass
        await self._run_if_dropped(frame)
        await self._run_for_steers()

    def _note_spoken(self) -> None:
        """Record the messages that the aggregator made from a turn's text and thoughts."""
        turn, self._spoken = self._spoken, None
        if turn is None:
            return
        for message in self.parts.context.messages:
            said = isinstance(message, LLMSpecificMessage) or (
                message.get("role") == "assistant" and not message.get("tool_calls")
            )
            if said and id(message) not in self._before_spoken:
                turn.messages.append(message)

    def _note_owed(self, call: str) -> None:
        """Record that the aggregator puts off the run on the result of a function call."""
        turn = self._calls.get(call)
        if turn is None or not turn.is_well or turn in self._owed:
            return
        if owes_run(self.parts.assistant_aggregator):
            self._owed.append(turn)
            turn.runs += 1
            self._follow(turn)

    async def _run_if_dropped(self, frame: Frame) -> None:
        """Run the LLM for a job's turn, if the aggregator drops the run that it has put off.

        The aggregator drops it when it adds other text to the context meanwhile. It also expects
        that the user's words run the LLM, although the user may have said nothing.
        """
        aggregator = self.parts.assistant_aggregator
        if not self._owed or self.over:
            return
        dropped = not owes_run(aggregator)
        if not dropped and not isinstance(frame, UserStoppedSpeakingFrame):
            return
        if any(turn.owned for turn in self._owed):
            _cause.set(_Cause())
            await aggregator.push_context_frame(FrameDirection.UPSTREAM)
        elif dropped:
            lost, self._owed = self._owed, []
            for turn in lost:
                turn.runs -= 1
                self._follow(turn)

    async def _run_for_steers(self) -> None:
        """Run the LLM for turns that would be done if their jobs had not been steered."""
        steered, self._steered = self._steered, []
        for turn in steered:
            if turn.is_well:
                _cause.set(_Cause(turn, counted=True))
                await self.parts.assistant_aggregator.push_context_frame(FrameDirection.UPSTREAM)

    def _settle_call(self, call: str, result: Any) -> None:
        turn = self._calls.pop(call, None)
        if turn is not None:
            turn.note_result(call, result)
            self._follow(turn)

    # -- the LLM -----------------------------------------------------------------------------

    async def _before_running(self, _: FrameProcessor, frame: Frame) -> None:
        match frame:
            case LLMContextFrame():
                await self._end_broken_run()
                self._begin_run(frame)
            case InterruptionFrame():
                await self._before_interruption(frame)
            case CancelFrame():
                # The run that it cuts off would otherwise end like a complete one.
                self.end()
            case _:
                pass

    async def _after_running(self, _: FrameProcessor, frame: Frame) -> None:
        if isinstance(frame, InterruptionFrame | CancelFrame):
            # A service that is cancelled between two chunks leaves its stream to the garbage
            # collector.
            await self._answer.close()

    def _begin_run(self, frame: LLMContextFrame) -> None:
        self._end_run()
        turn = self._requests.take(frame.id)
        if turn is None or turn.state is TurnState.DONE:
            turn = Turn()
            turn.runs = 1
            self.open.add(turn)
        turn.runs = max(1, turn.runs)
        turn.begun += 1
        self.running = self._latest = turn
        self._running_task = asyncio.current_task()
        self._answer = Answer(must_be_whole=turn.owned)
        self._answer.expect(self.parts.llm)
        turn.text, turn.error = "", None
        self._follow(turn)
        if not turn.is_well:
            # The turn was stopped before the LLM began its run.
            self.parts.worker.create_task(self.interrupt(turn), "llm_turn_interrupt")

    async def _before_interruption(self, frame: InterruptionFrame) -> None:
        running, self.running = self.running, None
        own = self._interruptions.get(frame.id)
        if own is not None:
            # It also drops the runs that wait behind this one, which may be a user's.
            waiting = self.parts.llm.has_queued_frame(LLMContextFrame) and own.turn.runs <= 1
            own.turn.dropped_others |= waiting or running not in (None, own.turn)
            dropped: list[FunctionCallRunnerItem] = []
        else:
            # The interruption cancels the call that runs, and the next call in the queue would
            # begin.
            dropped = take_queued_function_calls(
                self.parts.llm, lambda call: call.registry_item.cancel_on_interruption
            )
        for turn in list(self.open):
            self._fail(turn, self._interrupted(turn, "it was interrupted"))
            self._follow(turn)
        await drop_calls(self.parts.llm, dropped)

    async def _before_leaving_llm(self, _: FrameProcessor, frame: Frame) -> None:
        if isinstance(frame, FunctionCallInProgressFrame):
            # This runs in the task of the call: the jobs of the tool inherit the turn's deadline,
            # and their questions go to the requester of the turn's job.
            turn = self._calls.get(frame.tool_call_id)
            job = turn.job if turn is not None else None
            current_deadline.set(job.deadline if job is not None else None)
            calling_job.set(job)
            if turn is not None and not frame.cancel_on_interruption:
                turn.background.add(frame.tool_call_id)
                self._follow(turn)
            return
        turn = self.running
        if turn is None:
            return
        match frame:
            case LLMTextFrame():
                turn.text += frame.text
                turn.tokens.put_nowait(frame.text)
            case ErrorFrame() if asyncio.current_task() is self._running_task:
                # The other tasks of the service run functions, whose errors are results for the
                # LLM.
                turn.error = _describe_error(frame)
                self.parts.worker.create_task(self._probe_run(), "llm_turn_probe")
            case FunctionCallsStartedFrame():
                # The functions' own requests to the provider do not belong to the LLM's answer.
                self._answer.ended = True
                if turn.is_at_its_last_run:
                    self._fail_at_its_last_run(turn)
                    await self._hold_run()
                for call in frame.function_calls:
                    turn.note_call(call)
                    self._calls[call.tool_call_id] = turn
            case LLMMessagesAppendFrame():
                # A thought, or its signature.
                turn.messages.extend(frame.messages)
            case LLMFullResponseStartFrame():
                self._starts.remember(frame.id, turn)
            case LLMFullResponseEndFrame():
                self._ends.remember(frame.id, turn)
                turn.texts += 1
                self._end_run()
            case _:
                pass

    async def _hold_run(self) -> None:
        """Wait for the interruption of a run that has failed, so that its calls do not begin."""
        if asyncio.current_task() is self._running_task:
            await asyncio.Event().wait()

    async def _probe_run(self) -> None:
        """End the run that has reported an error, unless the service ends it.

        A service that raises out of ``process_frame()`` does not push an
        ``LLMFullResponseEndFrame``. The next frame in its queue is processed once that run is over.
        """
        answer = self._answer

        async def end(*_: object) -> None:
            if self._answer is answer:
                await self._end_broken_run()

        await self.parts.llm.queue_frame(ControlFrame(), FrameDirection.DOWNSTREAM, end)

    async def _end_broken_run(self) -> None:
        """Push the end frame of a job's run that failed, if the service has not pushed it."""
        if self.running is not None and self.running.owned and self.running.error is not None:
            await self.parts.llm.push_frame(LLMFullResponseEndFrame())

    def _end_run(self) -> None:
        turn, self.running = self.running, None
        if turn is None:
            return
        self._answer.ended = True
        turn.stop_reason = self._answer.reason
        if turn.error is None and self._answer.failure is not None:
            # Some services report a timeout only to their event handlers.
            turn.error = describe_failure(self._answer.failure)
        # Here, and not at the end of the turn: a bot may respond to its job when the aggregator
        # reports the end of the run, and that response would pass for a success.
        if turn.error is not None:
            self._fail(turn, LLMTurnError(self.parts.worker.name, turn.error, text=turn.text))
        elif not turn.calls and turn.runs == 1:
            self._fail_if_empty(turn)
        elif turn.is_at_its_last_run:
            self._fail_at_its_last_run(turn)
        self._follow(turn)

    def _on_completion_timeout(self, _: FrameProcessor) -> None:
        """Fail a run that has timed out; some services report that only with this event."""
        turn = self._latest
        if turn is not None and turn.is_well:
            why = "the provider did not answer within the service's timeout"
            self._fail(turn, LLMTurnError(self.parts.worker.name, why, text=turn.text))

    # -- the state of a turn -----------------------------------------------------------------

    def _follow(self, turn: Turn) -> None:
        """Move a turn to the state that follows from its open runs and calls."""
        if turn.is_over:
            return
        if turn.runs == 0 and not turn.calls and turn.is_steered:
            turn.runs = 1
            self._steered.append(turn)
        if turn.runs == 0:
            self.rested.set()
        if turn.runs == 0 and not turn.calls:
            self._fail_if_empty(turn)
            self.close(turn)
        elif not turn.is_well:
            pass
        elif turn is self.running:
            turn.move(TurnState.RUNNING)
        elif turn in self._owed:
            turn.move(TurnState.OWED)
        elif turn.runs:
            turn.move(TurnState.ASKED)
        else:
            turn.move(TurnState.CALLING)
            if turn.is_answered:
                turn.release()

    def _fail(self, turn: Turn, failure: LLMTurnError) -> None:
        if turn.failure is not None or not turn.owned:
            return
        turn.fail(failure)
        job = turn.job
        if job is None or turn.awaited:
            return
        if all(other is turn or other.job is not job for other in self.open):
            self._on_failure(job, failure)

    def _fail_at_its_last_run(self, turn: Turn) -> None:
        why = (
            f"the LLM still calls functions in run {turn.begun}, and max_runs={turn.max_runs} "
            "allows no further run on their results; allow more runs, or ask for less"
        )
        failure = LLMTurnError(self.parts.worker.name, why, text=turn.text, max_runs=turn.max_runs)
        self._fail(turn, failure)

    def _fail_if_empty(self, turn: Turn) -> None:
        if not turn.text.strip():
            self._fail(turn, LLMTurnError(self.parts.worker.name, "the LLM gave an empty answer"))

    def _interrupted(self, turn: Turn, why: str) -> LLMTurnInterruptedError:
        return LLMTurnInterruptedError(self.parts.worker.name, why, text=turn.text)


def _describe_error(frame: ErrorFrame) -> str:
    """Describe a service's error, with the details of its exception that the service leaves out."""
    if isinstance(frame.exception, AnswerCutError):
        return str(frame.exception)
    if frame.exception is None:
        return frame.error
    text, raised = describe_failure(frame.exception), str(frame.exception)
    return frame.error.replace(raised, text) if raised in frame.error else frame.error
