"""Observes the frames at an LLM: speech, interruptions, function calls, the end of the session."""

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, cast
from weakref import WeakKeyDictionary

from pipecat.frames.frames import (
    AggregatedTextFrame,
    BotSpeakingFrame,
    BotStartedSpeakingFrame,
    BotStoppedSpeakingFrame,
    CancelFrame,
    EndFrame,
    ErrorFrame,
    Frame,
    FunctionCallCancelFrame,
    FunctionCallInProgressFrame,
    FunctionCallResultFrame,
    FunctionCallsStartedFrame,
    InterruptionFrame,
    LLMContextAssistantTurnFrame,
    LLMContextFrame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    StopFrame,
    TextFrame,
    TTSSpeakFrame,
    UserMuteStartedFrame,
    UserMuteStoppedFrame,
    UserSpeakingFrame,
    UserStartedSpeakingFrame,
    UserStoppedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.processors.aggregators.llm_context import LLMContext, LLMContextMessage, NotGiven
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.services.llm_service import LLMService

from pipecat_jobs._llm.context_value import to_context_value
from pipecat_jobs._llm.runs import Run, Runs
from pipecat_jobs._pipecat import is_speech_to_speech
from pipecat_jobs._pipecat.schemas import ToolsSchema
from pipecat_jobs.conversation.floor import Floor, FloorHolder

#: The tools of a context.
Tools = ToolsSchema | NotGiven

#: Whether the call that this task runs was interrupted before it began. It is set in the task of
#: the call, because a function of a flow does not get the id of its call.
_interrupted: ContextVar[bool] = ContextVar("pipecat_jobs_interrupted", default=False)


def was_interrupted_before_it_began() -> bool:
    """Return whether the user interrupted the LLM before the call that this task runs had begun.

    With ``run_in_parallel=False`` an LLM service keeps its calls in a queue. When the user
    interrupts, Pipecat cancels the call that runs, but still runs the calls in the queue. It is
    always False for a call with ``cancel_on_interruption=False``.
    """
    return _interrupted.get()


#: The id of the function call that this task runs.
_call: ContextVar[str | None] = ContextVar("pipecat_jobs_call", default=None)


class LLMWatch:
    """Observes every frame that reaches one LLM, and its function calls.

    The frames about the speech of the user and the bot pass a voice bot's LLM, in its own pipeline
    or over a bridge. The last frame of a session is observed before the LLM passes it on, so that a
    call can be settled while the pipeline still accepts its result.

    Each LLM has one watch, which is never removed: when a handler is removed while Pipecat calls
    the handlers of an event, Pipecat skips the next one.
    """

    def __init__(self, *, is_realtime: bool) -> None:
        self.endings: set[Callable[[], Awaitable[None]]] = set()
        """Functions to call at the end of the session; each call without a result has one."""
        self.floor = Floor()
        self.runs = Runs(self.floor)
        self.on_interruption: Callable[[], None] | None = None
        """Is called at each interruption of an LLM that reads its context."""
        self.on_user_turn: Callable[[], None] | None = None
        """Is called when the user has spoken, or has written where nobody speaks."""
        self.change_tools: Callable[[Tools], Tools] | None = None
        """Returns the tools that a run is to have, given those of its context."""
        self.awaited_jobs: set[str] = set()
        """The ids of the jobs for whose results the LLM waits."""
        self._is_realtime = is_realtime
        self._hears_user = False
        """Whether the user speaks to the bot, in place of writing."""
        self._in_user_turn = False
        self._took_turn_over = False
        """Whether another worker saw the beginning of the user's turn."""
        self._is_user_muted = False
        self._is_speculating = False
        """Whether the latest answer was made before the user's turn had ended, and may be lost."""
        self._running_task: asyncio.Task[object] | None = None
        self._interruptions = 0
        """Number of interruptions so far."""
        self._made: dict[str, int] = {}
        """Number of interruptions when a call was made, by the id of each open call."""
        self._awaited: dict[str, Run | None] = {}
        """The open calls for which the conversation waits, by id, each with its run."""

    async def on_frame(self, llm: FrameProcessor, frame: Frame) -> None:
        """Observe a frame before the LLM processes it."""
        self._note_speech(frame)
        match frame:
            case LLMContextFrame() if not self._is_realtime:
                self._begin_run(frame)
            case LLMContextAssistantTurnFrame():
                self.runs.on_text_written(frame.text)
            case EndFrame() | CancelFrame() | StopFrame():
                for end in list(self.endings):
                    await end()
            case _:
                pass

    def _note_speech(self, frame: Frame) -> None:
        match frame:
            # The speaking frames are sent throughout, also if the speech began before the watch.
            case UserStartedSpeakingFrame():
                self._in_user_turn, self._took_turn_over = True, False
                self._note_user_speaks()
            case UserSpeakingFrame() if not self._is_user_muted:
                self._note_user_speaks()
            case BotStartedSpeakingFrame() | BotSpeakingFrame():
                self.floor.take(FloorHolder.BOT)
                self.runs.on_bot_speaks()
            case VADUserStoppedSpeakingFrame() if not self._in_user_turn:
                # Too little for a turn, such as "mhm".
                self.floor.release(FloorHolder.USER)
            case UserMuteStartedFrame():
                self._is_user_muted = True
            case UserMuteStoppedFrame():
                self._is_user_muted = False
            case UserStoppedSpeakingFrame() if self.floor.is_held_by(FloorHolder.USER):
                self._in_user_turn = self._took_turn_over = False
                self.floor.release(FloorHolder.USER)
                self._note_user_turn()
                if self._is_realtime:
                    # Nothing shows that the service answers, until it does.
                    self.runs.expect()
            case BotStoppedSpeakingFrame():
                self.floor.release(FloorHolder.BOT)
                self.runs.on_bot_silent()
            case InterruptionFrame():
                self._interruptions += 1
                self.runs.cut()
                # A realtime service keeps the message that it has, and answers it next.
                if self.on_interruption is not None and not self._is_realtime:
                    self.on_interruption()
            case _:
                pass

    def _begin_run(self, frame: LLMContextFrame) -> None:
        self._running_task = asyncio.current_task()
        messages = frame.context.messages
        self._is_speculating = _is_speculative(frame)
        if self._is_speculating:
            frame.context.set_messages(self.runs.hide_reports(messages))
        else:
            self._change_messages(frame.context, messages)
        if self.change_tools is not None:
            tools = self.change_tools(frame.context.tools)
            if tools is not frame.context.tools:
                frame.context.set_tools(tools)

    def unfollow(self) -> None:
        """Forget the runs, and the code that follows the conversation: the worker stops."""
        self.runs.close()
        self.runs.listener = self.on_interruption = self.on_user_turn = self.change_tools = None

    def _change_messages(self, context: LLMContext, messages: list[LLMContextMessage]) -> None:
        last = messages[-1] if messages else None
        if isinstance(last, dict) and last.get("role") == "user":
            if self._took_turn_over:
                # In case the end of the turn came between two workers.
                self._in_user_turn = self._took_turn_over = False
                self.floor.release(FloorHolder.USER)
            if not self._hears_user:
                self._note_user_turn()
        changed = self.runs.begin(messages)
        if changed is not None and changed != messages:
            context.set_messages(changed)
        self.runs.keep_context(context)

    def _note_user_speaks(self) -> None:
        self._hears_user = True
        self.floor.take(FloorHolder.USER)

    def _note_user_turn(self) -> None:
        if self.on_user_turn is not None:
            self.on_user_turn()

    def leave(self) -> bool:
        """Forget who speaks, for a worker that sees no more frames; return whether the user does.

        The bot's speech and the user's voice, but not the user's turn, are told again and again.
        """
        in_user_turn, self._in_user_turn = self._in_user_turn, False
        self.floor.reset()
        return in_user_turn

    def take_over_turn(self) -> None:
        """Go on with the turn of a user whom another worker has heard so far."""
        self._in_user_turn = self._took_turn_over = True
        self._note_user_speaks()

    async def after_frame(self, _: FrameProcessor, frame: Frame) -> None:
        """Observe that the LLM has processed a frame."""
        is_run = isinstance(frame, LLMContextFrame) and not _is_speculative(frame)
        if is_run and not self._is_realtime:
            # A service that fails may leave out the frame that ends its answer.
            self.runs.end()

    async def on_push(self, _: FrameProcessor, frame: Frame) -> None:
        """Observe a function call before the LLM pushes it; make its arguments valid JSON."""
        if self._is_realtime:
            # Some services find out themselves that the user speaks.
            self._note_speech(frame)
        match frame:
            case AggregatedTextFrame():
                # A realtime service pushes it beside the text that the LLM has generated.
                pass
            case TextFrame():
                self.runs.add_text(frame.text)
            case TTSSpeakFrame() if frame.append_to_context:
                self.runs.add_speech(frame.text)
            case LLMFullResponseStartFrame() if self._is_realtime:
                self.runs.begin(None)
            case LLMFullResponseStartFrame() if self._is_speculating:
                # The user's turn has ended as expected. The context had no reports.
                self.runs.begin([])
            case LLMFullResponseEndFrame():
                self.runs.end()
            case ErrorFrame() if asyncio.current_task() is self._running_task:
                self.runs.fail(frame.error)
            case FunctionCallsStartedFrame():
                for call in frame.function_calls:
                    self._made[call.tool_call_id] = self._interruptions
                    self._awaited[call.tool_call_id] = self.runs.latest
                self.floor.take(FloorHolder.TOOL)
            case FunctionCallInProgressFrame():
                # Pipecat writes the arguments into the context, where half of a surrogate pair
                # would make every later request fail.
                frame.arguments = to_context_value(frame.arguments)
                # An unknown call was made before this watch began.
                _call.set(frame.tool_call_id)
                made = self._made.get(frame.tool_call_id, 0)
                _interrupted.set(frame.cancel_on_interruption and made < self._interruptions)
                if frame.cancel_on_interruption:
                    self.runs.note_call(self._awaited.get(frame.tool_call_id))
                else:
                    self._stop_waiting_for(frame.tool_call_id)
            case FunctionCallResultFrame():
                if frame.properties is None or frame.properties.is_final:
                    self._end_call(frame.tool_call_id)
            case FunctionCallCancelFrame():
                self._end_call(frame.tool_call_id)
            case _:
                pass

    def _end_call(self, call: str) -> None:
        self._made.pop(call, None)
        self._stop_waiting_for(call)

    def _stop_waiting_for(self, call: str) -> None:
        self._awaited.pop(call, None)
        if not self._awaited:
            self.floor.release(FloorHolder.TOOL)

    def is_open(self, call: str | None) -> bool:
        """Return whether a call that this LLM made has no result yet."""
        return call in self._made


def _is_speculative(frame: LLMContextFrame) -> bool:
    """Return whether a frame has the LLM answer before the turn of the user has ended.

    Pipecat holds such an answer back, and drops it if the user goes on speaking.
    """
    # Pipecat 1.8 does not have it.
    return bool(getattr(frame, "speculation", False))


_watches: WeakKeyDictionary[LLMService[Any], LLMWatch] = WeakKeyDictionary()


def watch(llm: LLMService[Any]) -> LLMWatch:
    """Return the watch of an LLM, which begins with the first call for that LLM."""
    found = _watches.get(llm)
    if found is None:
        found = _watches[llm] = LLMWatch(is_realtime=is_speech_to_speech(llm))
        llm.add_event_handler("on_before_process_frame", found.on_frame)
        llm.add_event_handler("on_after_process_frame", found.after_frame)
        llm.add_event_handler("on_before_push_frame", found.on_push)
    return found


def is_called_by(llm: LLMService[Any]) -> bool:
    """Return whether the running code belongs to a function call for whose result an LLM waits."""
    watching = _watches.get(llm)
    return watching is not None and watching.is_open(_call.get())


def watch_llms(pipeline: FrameProcessor) -> None:
    """Begin to watch every LLM in a pipeline, before any of them makes a call."""
    for processor in pipeline.processors:
        if isinstance(processor, LLMService):
            watch(cast("LLMService[Any]", processor))
        watch_llms(processor)
