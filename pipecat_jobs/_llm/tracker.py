"""Follows the runs of one worker's LLM, and tells to which turn each belongs.

Pipecat runs an LLM when an ``LLMContextFrame`` reaches it. The two aggregators around it make those
frames, so their public processor events tell which request each run belongs to.
"""

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field

from pipecat.frames.frames import (
    BotStoppedSpeakingFrame,
    CancelFrame,
    ControlFrame,
    ErrorFrame,
    Frame,
    FunctionCallCancelFrame,
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
from pipecat.workers.llm import LLMContextWorker

from pipecat_jobs._executor.execution import Execution
from pipecat_jobs._llm.function_calls import drop_calls
from pipecat_jobs._llm.provider import Answer, AnswerCutError, describe_failure
from pipecat_jobs._llm.turn import Turn, TurnState
from pipecat_jobs._pipecat import forgo_owed_run, owes_run, take_queued_function_calls
from pipecat_jobs._protocol.recent import Recent
from pipecat_jobs.errors import LLMTurnError, LLMTurnInterruptedError

_RUNNING_FRAMES = (LLMRunFrame, LLMContextFrame)
_MESSAGE_FRAMES = (LLMMessagesAppendFrame, LLMMessagesUpdateFrame, LLMMessagesTransformFrame)
_CALL_END_FRAMES = (FunctionCallResultFrame, FunctionCallCancelFrame)

#: What an aggregator may run the LLM for.
_CAUSES = (*_RUNNING_FRAMES, *_MESSAGE_FRAMES, *_CALL_END_FRAMES, BotStoppedSpeakingFrame)


@dataclass(frozen=True, slots=True)
class _Cause:
    """The frame for which an aggregator may run the LLM."""

    turn: Turn | None = None
    """The turn it belongs to."""
    counted: bool = False
    """Whether the run is counted as one of the turn's runs already."""


#: What an aggregator's task is processing; None for a frame that runs no LLM.
_cause: ContextVar[_Cause | None] = ContextVar("pipecat_jobs_turn", default=None)


@dataclass(slots=True, eq=False)
class _Interruption:
    """An ``InterruptionFrame`` that stops a turn, on its way."""

    frame: InterruptionFrame
    turn: Turn
    passed: asyncio.Event = field(default_factory=asyncio.Event)


class TurnTracker:
    """Follows the turns of one worker's LLM; ``on_failure`` is called when a job's turn fails.

    It is called before the pipeline passes on the frame that tells of the turn's end.
    """

    def __init__(
        self,
        worker: LLMContextWorker,
        on_failure: Callable[[Execution, LLMTurnError], None],
    ):
        self.open: set[Turn] = set()
        """The turns of which something is left in the pipeline."""
        self.rested = asyncio.Event()
        """Set when a turn has no more runs."""
        self.over = False
        """Whether the worker has stopped, and its LLM is never run again."""
        self.running: Turn | None = None
        """The turn that the LLM generates for."""
        self._worker = worker
        self._on_failure = on_failure
        self._running_task: asyncio.Task[object] | None = None
        self._latest: Turn | None = None
        """The turn of the latest run."""
        self._answer = Answer(must_be_whole=False)
        """What the provider sends in answer to the latest run."""
        self._owed: list[Turn] = []
        """Turns for whose results the aggregator is to run the LLM later; counted in their runs."""
        self._spoken: Turn | None = None
        """The turn whose words the aggregator is putting together."""
        self._before_spoken: set[int] = set()
        """Ids of the messages in the context when it began to."""
        self._interruptions: dict[int, _Interruption] = {}
        #: By frame id. Bounded, because frames that an interruption drops are never taken out.
        self._requests: Recent[int, Turn] = Recent()
        self._starts: Recent[int, Turn] = Recent()
        self._ends: Recent[int, Turn] = Recent()
        self._calls: dict[str, Turn] = {}
        for aggregator in (worker.user_aggregator, worker.assistant_aggregator):
            aggregator.add_event_handler("on_before_process_frame", self._before_aggregating)
            aggregator.add_event_handler("on_before_push_frame", self._before_leaving_aggregator)
        worker.llm.add_event_handler("on_before_process_frame", self._before_running)
        worker.llm.add_event_handler("on_before_push_frame", self._before_leaving_llm)
        worker.llm.add_event_handler("on_after_process_frame", self._after_running)
        worker.llm.add_event_handler("on_completion_timeout", self._on_completion_timeout)
        worker.assistant_aggregator.add_event_handler(
            "on_after_process_frame", self._after_aggregating
        )

    @property
    def has_runs(self) -> bool:
        """Whether the LLM has a run to do, of any turn."""
        return any(turn.runs for turn in self.open)

    def expect(self, frame: Frame, turn: Turn) -> None:
        """Have a frame that is about to be queued start a turn, if it is one that runs the LLM."""
        if isinstance(frame, _RUNNING_FRAMES) or (
            isinstance(frame, _MESSAGE_FRAMES) and frame.run_llm
        ):
            self._requests.remember(frame.id, turn)
            self.open.add(turn)
            turn.runs += 1
            if turn.job is not None:
                turn.job.turn_failure = None

    async def interrupt(self, turn: Turn) -> asyncio.Event:
        """Interrupt the LLM's run of a turn; give the event of the interruption having passed."""
        interruption = _Interruption(InterruptionFrame(), turn)
        self._interruptions[interruption.frame.id] = interruption
        # Straight to the LLM, whose next run must not begin before it comes; what is ahead of the
        # LLM, the user's side of the conversation, has no part in it.
        await self._worker.llm.queue_frame(interruption.frame)
        return interruption.passed

    def forgo_owed_run(self, turn: Turn) -> None:
        """Have the aggregator not make a run that it owes to a turn alone."""
        if turn not in self._owed:
            return
        self._owed.remove(turn)
        turn.runs -= 1
        if not self._owed:
            forgo_owed_run(self._worker.assistant_aggregator)

    def close(self, turn: Turn) -> None:
        """Forget a turn of which nothing is left in the pipeline."""
        for call in turn.calls:
            self._calls.pop(call, None)
        self.open.discard(turn)
        self._owed = [owed for owed in self._owed if owed is not turn]
        turn.close()
        self.rested.set()

    def end(self) -> None:
        """End every turn: the worker stops."""
        self.over, self.running = True, None
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
        if aggregator is not self._worker.assistant_aggregator:
            return
        if isinstance(frame, LLMFullResponseStartFrame):
            self._spoken = self._starts.take(frame.id)
            self._before_spoken = {id(message) for message in self._worker.context.messages}

    def _before_leaving_aggregator(self, aggregator: FrameProcessor, frame: Frame) -> None:
        cause = _cause.get()
        # Without a cause it is a copy of the context on its way downstream, or runs for no job.
        if cause is None or not isinstance(frame, LLMContextFrame):
            return
        turn, counted = cause.turn, cause.counted
        if self._owed and aggregator is self._worker.assistant_aggregator:
            # One run answers all of them; its words go to the turn that llm_turn() waits for.
            turn = max(self._owed, key=lambda owed: (owed.awaited, owed.owned))
            counted = True
            rest, self._owed = [owed for owed in self._owed if owed is not turn], []
            for other in rest:
                other.runs -= 1
                self._follow(other)
        if turn is None:
            return
        self._requests.remember(frame.id, turn)
        if not counted:
            turn.runs += 1
        self._follow(turn)

    async def _after_aggregating(self, _: FrameProcessor, frame: Frame) -> None:
        match frame:
            case LLMFullResponseEndFrame():
                self._note_spoken()
                turn = self._ends.take(frame.id)
                if turn is not None:
                    turn.runs = max(0, turn.runs - 1)
                    self._follow(turn)
            case FunctionCallCancelFrame():
                self._note_owed(frame.tool_call_id)
                self._settle_call(frame.tool_call_id)
            case FunctionCallResultFrame():
                self._note_owed(frame.tool_call_id)
                if frame.properties is None or frame.properties.is_final:
                    self._settle_call(frame.tool_call_id)
            case InterruptionFrame():
                self._note_spoken()
                for turn in list(self.open):
                    if turn.failure is not None or not turn.owned:
                        turn.runs = 0
                        self._follow(turn)
                if (own := self._interruptions.pop(frame.id, None)) is not None:
                    own.passed.set()
            case _:
                pass
        await self._run_if_dropped(frame)

    def _note_spoken(self) -> None:
        """Note what the aggregator made of a turn's words, and of its thoughts."""
        turn, self._spoken = self._spoken, None
        if turn is None:
            return
        for message in self._worker.context.messages:
            said = isinstance(message, LLMSpecificMessage) or (
                message.get("role") == "assistant" and not message.get("tool_calls")
            )
            if said and id(message) not in self._before_spoken:
                turn.messages.append(message)

    def _note_owed(self, call: str) -> None:
        """Note that the aggregator puts off the run that the end of a function call asks for."""
        turn = self._calls.get(call)
        if turn is None or not turn.is_well or turn in self._owed:
            return
        if owes_run(self._worker.assistant_aggregator):
            self._owed.append(turn)
            turn.runs += 1
            self._follow(turn)

    async def _run_if_dropped(self, frame: Frame) -> None:
        """Run the LLM for a job's turn, if the aggregator forgets the run that it owes.

        It does when it puts other words into the context meanwhile; and it leaves the run to the
        one that the user's words bring, though the user may have said nothing.
        """
        aggregator = self._worker.assistant_aggregator
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

    def _settle_call(self, call: str) -> None:
        turn = self._calls.pop(call, None)
        if turn is not None:
            turn.calls.discard(call)
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
                # The run it cuts off would end like any other.
                self.end()
            case _:
                pass

    async def _after_running(self, _: FrameProcessor, frame: Frame) -> None:
        if isinstance(frame, InterruptionFrame | CancelFrame):
            # Cut off between two chunks, a service leaves its stream to the garbage collector.
            await self._answer.close()

    def _begin_run(self, frame: LLMContextFrame) -> None:
        self._end_run()
        turn = self._requests.take(frame.id)
        if turn is None or turn.state is TurnState.DONE:
            turn = Turn()
            turn.runs = 1
            self.open.add(turn)
        turn.runs = max(1, turn.runs)
        self.running = self._latest = turn
        self._running_task = asyncio.current_task()
        self._answer = Answer(must_be_whole=turn.owned)
        self._answer.expect(self._worker.llm)
        turn.text, turn.error = "", None
        self._follow(turn)
        if not turn.is_well:
            # The run of a turn that was stopped before the LLM came to it.
            self._worker.create_task(self.interrupt(turn), "llm_turn_interrupt")

    async def _before_interruption(self, frame: InterruptionFrame) -> None:
        running, self.running = self.running, None
        own = self._interruptions.get(frame.id)
        if own is not None:
            # It also drops the runs that wait behind the one it is for, and those may be a user's.
            waiting = self._worker.llm.has_queued_frame(LLMContextFrame) and own.turn.runs <= 1
            own.turn.dropped_others |= waiting or running not in (None, own.turn)
            dropped: list[FunctionCallRunnerItem] = []
        else:
            # The interruption cancels the call that runs, and the next of them would begin.
            dropped = take_queued_function_calls(
                self._worker.llm, lambda call: call.registry_item.cancel_on_interruption
            )
        for turn in list(self.open):
            self._fail(turn, self._interrupted(turn, "it was interrupted"))
            self._follow(turn)
        await drop_calls(self._worker.llm, dropped)

    def _before_leaving_llm(self, _: FrameProcessor, frame: Frame) -> None:
        turn = self.running
        if turn is None:
            return
        match frame:
            case LLMTextFrame():
                turn.text += frame.text
                turn.tokens.put_nowait(frame.text)
            case ErrorFrame() if asyncio.current_task() is self._running_task:
                # The service's other tasks run functions, whose errors go to the LLM as results.
                turn.error = _describe_error(frame)
                self._worker.create_task(self._probe_run(), "llm_turn_probe")
            case FunctionCallsStartedFrame():
                # What the functions ask of the provider is not the LLM's answer.
                self._answer.ended = True
                for call in frame.function_calls:
                    turn.note_call(call.tool_call_id)
                    self._calls[call.tool_call_id] = turn
            case LLMMessagesAppendFrame():
                # A thought, or its signature.
                turn.messages.extend(frame.messages)
            case LLMFullResponseStartFrame():
                self._starts.remember(frame.id, turn)
            case LLMFullResponseEndFrame():
                self._ends.remember(frame.id, turn)
                self._end_run()
            case _:
                pass

    async def _probe_run(self) -> None:
        """End the run that has reported an error, unless the service does.

        A service that raises out of ``process_frame()`` pushes no ``LLMFullResponseEndFrame``. The
        next frame in its queue is processed when that run is over.
        """
        answer = self._answer

        async def end(*_: object) -> None:
            if self._answer is answer:
                await self._end_broken_run()

        await self._worker.llm.queue_frame(ControlFrame(), FrameDirection.DOWNSTREAM, end)

    async def _end_broken_run(self) -> None:
        """Push the end that a service did not, if it has failed a run of a job."""
        if self.running is not None and self.running.owned and self.running.error is not None:
            await self._worker.llm.push_frame(LLMFullResponseEndFrame())

    def _end_run(self) -> None:
        turn, self.running = self.running, None
        if turn is None:
            return
        self._answer.ended = True
        if turn.error is None and self._answer.failure is not None:
            # Some services report a timeout to their event handlers alone.
            turn.error = describe_failure(self._answer.failure)
        # Here rather than at the end of the turn: an answer that is sent when the aggregator
        # reports the end of the run would pass for a good one.
        if turn.error is not None:
            self._fail(turn, LLMTurnError(self._worker.name, turn.error, text=turn.text))
        elif not turn.calls and turn.runs == 1:
            self._fail_if_empty(turn)
        self._follow(turn)

    def _on_completion_timeout(self, _: FrameProcessor) -> None:
        """Fail the run that a service gave up; some services report that by this event alone."""
        turn = self._latest
        if turn is not None and turn.is_well:
            why = "the provider did not answer within the service's timeout"
            self._fail(turn, LLMTurnError(self._worker.name, why, text=turn.text))

    # -- the state of a turn -----------------------------------------------------------------

    def _follow(self, turn: Turn) -> None:
        """Move a turn to the state that its open runs and calls amount to."""
        if turn.is_over:
            return
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

    def _fail(self, turn: Turn, failure: LLMTurnError) -> None:
        if turn.failure is not None or not turn.owned:
            return
        turn.fail(failure)
        job = turn.job
        if job is None or turn.awaited:
            return
        if all(other is turn or other.job is not job for other in self.open):
            self._on_failure(job, failure)

    def _fail_if_empty(self, turn: Turn) -> None:
        if not turn.text.strip():
            self._fail(turn, LLMTurnError(self._worker.name, "the LLM gave an empty answer"))

    def _interrupted(self, turn: Turn, why: str) -> LLMTurnInterruptedError:
        return LLMTurnInterruptedError(self._worker.name, why, text=turn.text)


def _describe_error(frame: ErrorFrame) -> str:
    """Give a service's error, with what it leaves out of the exception behind it."""
    if isinstance(frame.exception, AnswerCutError):
        return str(frame.exception)
    if frame.exception is None:
        return frame.error
    text, raised = describe_failure(frame.exception), str(frame.exception)
    return frame.error.replace(raised, text) if raised in frame.error else frame.error
