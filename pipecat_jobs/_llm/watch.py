"""Observes the frames at an LLM: speech, interruptions, function calls, the end of the session."""

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, cast
from weakref import WeakKeyDictionary

from pipecat.frames.frames import (
    BotSpeakingFrame,
    BotStartedSpeakingFrame,
    BotStoppedSpeakingFrame,
    CancelFrame,
    EndFrame,
    Frame,
    FunctionCallCancelFrame,
    FunctionCallInProgressFrame,
    FunctionCallResultFrame,
    FunctionCallsStartedFrame,
    InterruptionFrame,
    StopFrame,
    UserSpeakingFrame,
    UserStartedSpeakingFrame,
    UserStoppedSpeakingFrame,
)
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.services.llm_service import LLMService

from pipecat_jobs._llm.context_value import to_context_value

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

    def __init__(self) -> None:
        self.endings: set[Callable[[], Awaitable[None]]] = set()
        """Functions to call at the end of the session; each call without a result has one."""
        self._interruptions = 0
        """Number of interruptions so far."""
        self._made: dict[str, int] = {}
        """Number of interruptions when a call was made, by the id of each open call."""
        self._speaking: set[str] = set()
        self._speech = asyncio.Event()
        self._silence = asyncio.Event()
        self._silence.set()

    async def until_silent_for(self, seconds: float) -> None:
        """Wait until neither the user nor the bot has spoken for a number of seconds."""
        while True:
            await self._silence.wait()
            try:
                async with asyncio.timeout(seconds):
                    await self._speech.wait()
            except TimeoutError:
                if not self._speaking:
                    return

    async def on_frame(self, _: FrameProcessor, frame: Frame) -> None:
        """Observe a frame before the LLM processes it."""
        match frame:
            case UserStartedSpeakingFrame() | UserSpeakingFrame():
                self._starts("user")
            # The speaking frames are sent throughout, also if the speech began before the watch.
            case BotStartedSpeakingFrame() | BotSpeakingFrame():
                self._starts("bot")
            case UserStoppedSpeakingFrame():
                self._stops("user")
            case BotStoppedSpeakingFrame():
                self._stops("bot")
            case InterruptionFrame():
                self._interruptions += 1
            case EndFrame() | CancelFrame() | StopFrame():
                for end in list(self.endings):
                    await end()
            case _:
                pass

    async def on_push(self, _: FrameProcessor, frame: Frame) -> None:
        """Observe a function call before the LLM pushes it; make its arguments valid JSON."""
        match frame:
            case FunctionCallsStartedFrame():
                for call in frame.function_calls:
                    self._made[call.tool_call_id] = self._interruptions
            case FunctionCallInProgressFrame():
                # Pipecat writes the arguments into the context, where half of a surrogate pair
                # would make every later request fail.
                frame.arguments = to_context_value(frame.arguments)
                # An unknown call was made before this watch began.
                _call.set(frame.tool_call_id)
                made = self._made.get(frame.tool_call_id, 0)
                _interrupted.set(frame.cancel_on_interruption and made < self._interruptions)
            case FunctionCallResultFrame():
                if frame.properties is None or frame.properties.is_final:
                    self._made.pop(frame.tool_call_id, None)
            case FunctionCallCancelFrame():
                self._made.pop(frame.tool_call_id, None)
            case _:
                pass

    def is_open(self, call: str | None) -> bool:
        """Return whether a call that this LLM made has no result yet."""
        return call in self._made

    def _starts(self, who: str) -> None:
        self._speaking.add(who)
        self._silence.clear()
        self._speech.set()

    def _stops(self, who: str) -> None:
        self._speaking.discard(who)
        if not self._speaking:
            self._speech.clear()
            self._silence.set()


_watches: WeakKeyDictionary[LLMService[Any], LLMWatch] = WeakKeyDictionary()


def watch(llm: LLMService[Any]) -> LLMWatch:
    """Return the watch of an LLM, which begins with the first call for that LLM."""
    found = _watches.get(llm)
    if found is None:
        found = _watches[llm] = LLMWatch()
        llm.add_event_handler("on_before_process_frame", found.on_frame)
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
