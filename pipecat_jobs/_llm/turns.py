"""What the LLM of a worker generates, told apart by who asked for it.

A *turn* is everything an LLM does for one request: the run that answers it, the function calls of
that run, the runs that follow on their results, and the last words in the context. Pipecat runs
an LLM when an ``LLMContextFrame`` reaches it. The two aggregators around it make those frames, so
their public processor events tell which request each run belongs to.
"""

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field

from pipecat.frames.frames import (
    BotStoppedSpeakingFrame,
    CancelFrame,
    ErrorFrame,
    Frame,
    FunctionCallCancelFrame,
    FunctionCallInProgressFrame,
    FunctionCallResultFrame,
    FunctionCallResultProperties,
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
from pipecat.processors.aggregators import async_tool_messages
from pipecat.processors.aggregators.llm_context import (
    LLMContext,
    LLMContextMessage,
    LLMSpecificMessage,
)
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.services.llm_service import FunctionCallRunnerItem
from pipecat.workers.llm import LLMContextWorker

from pipecat_jobs._executor.execution import Execution
from pipecat_jobs._llm.provider import Answer, AnswerCutError, describe_failure
from pipecat_jobs._pipecat import (
    cancel_function_call,
    forgo_owed_run,
    owes_run,
    take_queued_function_calls,
)
from pipecat_jobs._protocol.recent import Recent
from pipecat_jobs.errors import LLMTurnError, LLMTurnInterruptedError

_RUNNING_FRAMES = (LLMRunFrame, LLMContextFrame)
_MESSAGE_FRAMES = (LLMMessagesAppendFrame, LLMMessagesUpdateFrame, LLMMessagesTransformFrame)
_CALL_END_FRAMES = (FunctionCallResultFrame, FunctionCallCancelFrame)

#: What an aggregator may run the LLM for.
_CAUSES = (*_RUNNING_FRAMES, *_MESSAGE_FRAMES, *_CALL_END_FRAMES, BotStoppedSpeakingFrame)

#: Seconds after which it is asked whether a run goes on.
_LONG_RUN = 1.0


@dataclass(frozen=True, slots=True)
class _Cause:
    """The frame for which an aggregator may run the LLM."""

    turn: "Turn | None" = None
    """The turn it belongs to."""
    counted: bool = False
    """Whether the run is counted as one of the turn's runs already."""


#: What an aggregator's task is processing; None for a frame that runs no LLM.
_cause: ContextVar[_Cause | None] = ContextVar("pipecat_jobs_turn", default=None)


class Turn:
    """One turn of an LLM.

    Args:
        job: The job it was started for; None when no job was, as while the worker talks to a user.
        awaited: Whether somebody waits for it, and learns of its failure that way.
    """

    def __init__(self, job: Execution | None = None, *, awaited: bool = False):
        self.job = job
        self.awaited = awaited
        self.owned = awaited or job is not None
        """Whether it fails when it is interrupted; what is nobody's goes on as Pipecat has it."""
        self.text = ""
        """What the latest run has said so far."""
        self.tokens: asyncio.Queue[str | None] = asyncio.Queue()
        """What every run says, as it is said; None at the end."""
        self.failure: LLMTurnError | None = None
        """Why it did not end well."""
        self.runs = 0
        """Runs that were asked for and whose words are not yet in the context."""
        self.calls: set[str] = set()
        """Ids of its function calls that have no result."""
        self.made_calls: set[str] = set()
        """Ids of all of its function calls."""
        self.messages: list[LLMContextMessage] = []
        """What it put into the context, its function calls aside."""
        self.error: str | None = None
        """What the provider's last error said."""
        self.stopping = False
        """Whether it was called off."""
        self.held_up_others = False
        """Whether runs that waited behind it were dropped when it was stopped."""
        self.closed = asyncio.Event()
        """Set when nothing of it is left in the pipeline."""

    def take_out(self, context: LLMContext) -> None:
        """Take what it put into a context out of it, and nothing else.

        Args:
            context: The context.
        """
        own = {id(message) for message in self.messages}
        context.set_messages(
            [
                message
                for message in context.messages
                if id(message) not in own and not self._is_of_its_calls(message)
            ]
        )

    def _is_of_its_calls(self, message: LLMContextMessage) -> bool:
        """Tell whether a message is one of its function calls, or what one of them gave."""
        if isinstance(message, LLMSpecificMessage):
            return False
        calls = {call.get("id") for call in message.get("tool_calls") or ()}
        calls.add(message.get("tool_call_id"))
        if message.get("role") == "developer" and (
            told := async_tool_messages.parse_message(message)
        ):
            calls.add(told.tool_call_id)
        return not self.made_calls.isdisjoint(calls)


@dataclass(slots=True, eq=False)
class _Interruption:
    """An ``InterruptionFrame`` that stops a turn, on its way."""

    frame: InterruptionFrame
    turn: Turn
    passed: asyncio.Event = field(default_factory=asyncio.Event)


class LLMTurns:
    """Follows the turns of one worker's LLM.

    Args:
        worker: The worker.
        on_failure: Called when a job's turn fails, before anybody else can hear of its end.
    """

    def __init__(
        self,
        worker: LLMContextWorker,
        on_failure: Callable[[Execution, LLMTurnError], None],
    ):
        self.lock = asyncio.Lock()
        """Held by whoever has a turn; the next waits in order of arrival."""
        self._worker = worker
        self._on_failure = on_failure
        self._open: set[Turn] = set()
        self._rested = asyncio.Event()
        self.over = False
        """Whether the worker has stopped, and its LLM is never run again."""
        self._running: Turn | None = None
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
        #: By frame id. Bounded, because an interruption drops frames that nobody hears of again.
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

    # -- asking for turns and stopping them --------------------------------------------------

    def expect(self, frame: Frame, turn: Turn) -> None:
        """Tell whose turn a frame will start. A frame that runs no LLM is passed over.

        Args:
            frame: The frame, about to be queued.
            turn: The turn it starts.
        """
        if isinstance(frame, _RUNNING_FRAMES) or (
            isinstance(frame, _MESSAGE_FRAMES) and frame.run_llm
        ):
            self._requests.remember(frame.id, turn)
            self._open.add(turn)
            turn.runs += 1
            if turn.job is not None:
                turn.job.turn_failure = None

    async def until_idle(self) -> None:
        """Wait until the LLM has no run to do, whoever asked for it."""
        while any(turn.runs for turn in self._open):
            self._rested.clear()
            try:
                async with asyncio.timeout(_LONG_RUN):
                    await self._rested.wait()
            except TimeoutError:
                # A service that breaks off without ``LLMFullResponseEndFrame`` is not heard to end.
                if await self._worker.flush_pipeline():
                    return

    async def stop_job(self, job: Execution) -> None:
        """Stop the turns of a job, and wait until nothing of them is left.

        A worker that does not hold the conversation, and does one such job at a time, generates
        for that job alone, however it was told to; so its LLM is stopped even where no frame was
        seen to come from the job.

        Args:
            job: A job that was called off or has failed.
        """
        worker = self._worker
        turns = [turn for turn in self._open if turn.job is job]
        if turns:
            await asyncio.gather(*(self.stop(turn) for turn in turns))
            return
        alone = job.room is not None and job.room.has_turn and not worker.active
        if alone and worker.started_at and not worker.has_finished():
            await worker.queue_frame(InterruptionFrame())
            await worker.flush_pipeline()

    async def stop(self, turn: Turn, clean_up: Callable[[], None] | None = None) -> None:
        """Stop a turn, and wait until nothing of it is left in the pipeline.

        An ``InterruptionFrame`` closes the provider's stream. It is sent only while the LLM is on
        a run of this turn; a run that waits behind another's is stopped as it begins.

        Args:
            turn: The turn.
            clean_up: Called when nothing of it is left, before the LLM runs for anybody else.
        """
        turn.stopping = True
        try:
            # Before the interruption, which would have the next of them begin.
            await self._drop_calls(self._take_calls(turn))
            if self._running is turn:
                passed = await self._interrupt(turn)
                await passed.wait()
                await self._drop_calls(self._take_calls(turn))
            for call in list(turn.calls):
                await cancel_function_call(self._worker.llm, call)
            if turn in self._owed:
                self._forgo_run(turn)
            if turn.runs or turn.calls:
                await turn.closed.wait()
        finally:
            self._close(turn)
        if clean_up is not None:
            clean_up()
        if turn.held_up_others:
            await self._worker.user_aggregator.push_context_frame()

    def end(self) -> None:
        """End every turn: the worker stops."""
        self.over, self._running = True, None
        for turn in list(self._open):
            self._fail(turn, self._interrupted(turn, "the worker stopped"))
            self._close(turn)

    async def _interrupt(self, turn: Turn) -> asyncio.Event:
        interruption = _Interruption(InterruptionFrame(), turn)
        self._interruptions[interruption.frame.id] = interruption
        # Straight to the LLM, whose next run must not begin before it comes; what is ahead of the
        # LLM, the user's side of the conversation, has no part in it.
        await self._worker.llm.queue_frame(interruption.frame)
        return interruption.passed

    def _take_calls(self, turn: Turn) -> list[FunctionCallRunnerItem]:
        """Take a turn's function calls that have not begun out of the service's queue."""
        return take_queued_function_calls(
            self._worker.llm, lambda call: call.tool_call_id in turn.calls
        )

    async def _drop_calls(self, calls: list[FunctionCallRunnerItem]) -> None:
        """Report function calls that are never run as cancelled."""
        llm = self._worker.llm
        for call in calls:
            names = {"function_name": call.function_name, "tool_call_id": call.tool_call_id}
            await llm.broadcast_frame(
                FunctionCallInProgressFrame,
                **names,
                arguments=call.arguments,
                cancel_on_interruption=True,
                group_id=call.group_id,
            )
            # A FunctionCallCancelFrame would overtake the frame before it.
            await llm.broadcast_frame(
                FunctionCallResultFrame,
                **names,
                arguments=call.arguments,
                result="CANCELLED",
                properties=FunctionCallResultProperties(run_llm=False),
            )

    # -- what the pipeline tells -------------------------------------------------------------

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
            # One run answers all of them; its words go to the turn that a caller waits for.
            turn = max(self._owed, key=lambda owed: (owed.awaited, owed.owned))
            counted = True
            rest, self._owed = [owed for owed in self._owed if owed is not turn], []
            for other in rest:
                other.runs -= 1
                self._close_if_over(other)
        if turn is None:
            return
        self._requests.remember(frame.id, turn)
        if not counted:
            turn.runs += 1

    async def _before_running(self, _: FrameProcessor, frame: Frame) -> None:
        match frame:
            case LLMContextFrame():
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
        self._run_is_over()
        turn = self._requests.take(frame.id)
        if turn is None:
            turn = Turn()
            turn.runs = 1
            self._open.add(turn)
        self._running = self._latest = turn
        self._running_task = asyncio.current_task()
        self._answer = Answer(must_be_whole=turn.owned)
        self._answer.expect(self._worker.llm)
        turn.text, turn.error = "", None
        if turn.stopping or turn.failure is not None:
            self._worker.create_task(self._interrupt(turn), "llm_turn_interrupt")

    async def _before_interruption(self, frame: InterruptionFrame) -> None:
        running, self._running = self._running, None
        own = self._interruptions.get(frame.id)
        if own is not None:
            # It also drops the runs that wait behind the one it is for, and those may be a user's.
            waiting = self._worker.llm.has_queued_frame(LLMContextFrame) and own.turn.runs <= 1
            own.turn.held_up_others = waiting or running not in (None, own.turn)
            dropped: list[FunctionCallRunnerItem] = []
        else:
            # The interruption cancels the call that runs, and the next of them would begin.
            dropped = take_queued_function_calls(
                self._worker.llm, lambda call: call.registry_item.cancel_on_interruption
            )
        for turn in list(self._open):
            self._fail(turn, self._interrupted(turn, "it was interrupted"))
        await self._drop_calls(dropped)

    def _before_leaving_llm(self, _: FrameProcessor, frame: Frame) -> None:
        turn = self._running
        if turn is None:
            return
        match frame:
            case LLMTextFrame():
                turn.text += frame.text
                turn.tokens.put_nowait(frame.text)
            case ErrorFrame() if asyncio.current_task() is self._running_task:
                # The service's other tasks run functions, of whose errors the LLM is told.
                turn.error = _describe_error(frame)
            case FunctionCallsStartedFrame():
                # What the functions ask of the provider is not the LLM's answer.
                self._answer.ended = True
                for call in frame.function_calls:
                    turn.calls.add(call.tool_call_id)
                    turn.made_calls.add(call.tool_call_id)
                    self._calls[call.tool_call_id] = turn
            case LLMMessagesAppendFrame():
                # A thought, or its signature.
                turn.messages.extend(frame.messages)
            case LLMFullResponseStartFrame():
                self._starts.remember(frame.id, turn)
            case LLMFullResponseEndFrame():
                self._ends.remember(frame.id, turn)
                self._run_is_over()
            case _:
                pass

    def _run_is_over(self) -> None:
        turn, self._running = self._running, None
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

    async def _after_aggregating(self, _: FrameProcessor, frame: Frame) -> None:
        match frame:
            case LLMFullResponseEndFrame():
                self._note_spoken()
                turn = self._ends.take(frame.id)
                if turn is not None:
                    turn.runs = max(0, turn.runs - 1)
                    self._close_if_over(turn)
            case FunctionCallCancelFrame():
                self._note_owed(frame.tool_call_id)
                self._settle_call(frame.tool_call_id)
            case FunctionCallResultFrame():
                self._note_owed(frame.tool_call_id)
                if frame.properties is None or frame.properties.is_final:
                    self._settle_call(frame.tool_call_id)
            case InterruptionFrame():
                self._note_spoken()
                for turn in list(self._open):
                    if turn.failure is not None or not turn.owned:
                        turn.runs = 0
                        self._close_if_over(turn)
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
        if turn is None or turn.stopping or turn.failure is not None or turn in self._owed:
            return
        if owes_run(self._worker.assistant_aggregator):
            self._owed.append(turn)
            turn.runs += 1

    def _forgo_run(self, turn: Turn) -> None:
        """Have the aggregator not make a run that it owes to a turn alone."""
        self._owed.remove(turn)
        turn.runs -= 1
        if not self._owed:
            forgo_owed_run(self._worker.assistant_aggregator)

    async def _run_if_dropped(self, frame: Frame) -> None:
        """Run the LLM for a job's turn, if the aggregator forgets the run that it owes.

        It does when it puts other words into the context meanwhile; and it leaves the run to the
        one that the user's words bring, who may have said nothing.
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
                self._close_if_over(turn)

    def _settle_call(self, call: str) -> None:
        turn = self._calls.pop(call, None)
        if turn is not None:
            turn.calls.discard(call)
            self._close_if_over(turn)

    # -- how a turn ends ---------------------------------------------------------------------

    def _close_if_over(self, turn: Turn) -> None:
        if turn.runs:
            return
        self._rested.set()
        if not turn.calls:
            self._fail_if_empty(turn)
            self._close(turn)

    def _close(self, turn: Turn) -> None:
        turn.runs = 0
        for call in turn.calls:
            self._calls.pop(call, None)
        self._open.discard(turn)
        self._owed = [owed for owed in self._owed if owed is not turn]
        turn.closed.set()
        turn.tokens.put_nowait(None)
        self._rested.set()

    def _fail(self, turn: Turn, failure: LLMTurnError) -> None:
        if turn.failure is not None or not turn.owned:
            return
        turn.failure = failure
        turn.tokens.put_nowait(None)
        job = turn.job
        if job is None or turn.awaited:
            return
        if all(other is turn or other.job is not job for other in self._open):
            self._on_failure(job, failure)

    def _fail_if_empty(self, turn: Turn) -> None:
        if not turn.text.strip():
            self._fail(turn, LLMTurnError(self._worker.name, "the LLM gave an empty answer"))

    def _interrupted(self, turn: Turn, why: str) -> LLMTurnInterruptedError:
        return LLMTurnInterruptedError(self._worker.name, why, text=turn.text)

    def _on_completion_timeout(self, _: FrameProcessor) -> None:
        """Fail the run that a service gave up; some services report that by this event alone."""
        turn = self._latest
        if turn is not None and not turn.closed.is_set():
            why = "the provider did not answer within the service's timeout"
            self._fail(turn, LLMTurnError(self._worker.name, why, text=turn.text))


def _describe_error(frame: ErrorFrame) -> str:
    """Give a service's error, with what it leaves out of the exception behind it."""
    if isinstance(frame.exception, AnswerCutError):
        return str(frame.exception)
    if frame.exception is None:
        return frame.error
    text, told = describe_failure(frame.exception), str(frame.exception)
    return frame.error.replace(told, text) if told in frame.error else frame.error
