"""What passes an LLM: who speaks, and the end of the session."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from weakref import WeakKeyDictionary

from pipecat.frames.frames import (
    BotSpeakingFrame,
    BotStartedSpeakingFrame,
    BotStoppedSpeakingFrame,
    CancelFrame,
    EndFrame,
    Frame,
    StopFrame,
    UserSpeakingFrame,
    UserStartedSpeakingFrame,
    UserStoppedSpeakingFrame,
)
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.services.llm_service import LLMService


class LLMWatch:
    """Hears every frame that reaches one LLM.

    The frames of a voice bot that tell who speaks come past its LLM, in its own pipeline or over
    a bridge. The last frame of a session is heard before the LLM passes it on, so that a call can
    be settled while the pipeline still takes its result.

    There is one for each LLM, for good: a handler that is removed while the LLM calls its handlers
    would have it pass over another.
    """

    def __init__(self) -> None:
        self.endings: set[Callable[[], Awaitable[None]]] = set()
        """Called at the end of the session, each by a call that has no result yet."""
        self._speaking: set[str] = set()
        self._speech = asyncio.Event()
        self._silence = asyncio.Event()
        self._silence.set()

    async def until_silent_for(self, seconds: float) -> None:
        """Wait until neither the user nor the bot has spoken for a while.

        Args:
            seconds: How long; any speech begins it anew.
        """
        while True:
            await self._silence.wait()
            try:
                async with asyncio.timeout(seconds):
                    await self._speech.wait()
            except TimeoutError:
                if not self._speaking:
                    return

    async def on_frame(self, _: FrameProcessor, frame: Frame) -> None:
        """Hear a frame, before the LLM processes it.

        Args:
            _: The LLM.
            frame: The frame.
        """
        match frame:
            case UserStartedSpeakingFrame() | UserSpeakingFrame():
                self._starts("user")
            # Sent all the while, which tells of speech that began before this watch did.
            case BotStartedSpeakingFrame() | BotSpeakingFrame():
                self._starts("bot")
            case UserStoppedSpeakingFrame():
                self._stops("user")
            case BotStoppedSpeakingFrame():
                self._stops("bot")
            case EndFrame() | CancelFrame() | StopFrame():
                for end in list(self.endings):
                    await end()
            case _:
                pass

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
    """Give the watch of an LLM, which begins with the first call of this.

    Args:
        llm: The LLM.

    Returns:
        Its only watch.
    """
    found = _watches.get(llm)
    if found is None:
        found = _watches[llm] = LLMWatch()
        llm.add_event_handler("on_before_process_frame", found.on_frame)
    return found
