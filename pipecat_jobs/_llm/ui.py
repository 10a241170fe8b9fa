"""Pipecat's UI workers with the mixin added; ``pipecat_jobs`` imports this module on first use."""

import warnings

from pipecat.workers.base_ui_worker import (
    BaseUIWorker as PipecatBaseUIWorker,  # pyright: ignore[reportDeprecated]
)
from pipecat.workers.ui import UIWorker as PipecatUIWorker

from pipecat_jobs._llm.pipeline_workers import BaseWorker
from pipecat_jobs._llm.worker import LLMContextWorker

__all__ = ["BaseUIWorker", "UIWorker"]


class UIWorker(PipecatUIWorker, LLMContextWorker):
    """Pipecat's ``UIWorker`` with jobs that always end, and with :meth:`llm_turn`.

    The cards of its job groups appear on the client as with Pipecat's class, and close however the
    group ends.

    Example::

        class Screen(UIWorker):
            @job_tool("wiki", "news", job="research", label="Looking it up")
            async def look_up(self, topic: str):
                '''Look a topic up in an encyclopedia and in the news.'''
                return {"topic": topic}


        llm = OpenAILLMService(api_key="your key")
        screen = Screen("screen", llm=llm)
    """


with warnings.catch_warnings():
    # Pipecat 1.12 deprecates the class and warns at every subclass. A subclass of this one still
    # causes the warning.
    warnings.simplefilter("ignore", DeprecationWarning)

    class BaseUIWorker(PipecatBaseUIWorker, BaseWorker):
        """Pipecat's ``BaseUIWorker`` with jobs that always end.

        Pipecat 1.12 deprecates its class in favour of :class:`UIWorker`.
        """
