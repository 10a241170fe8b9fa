"""Pipecat's UI workers with the mixin added. ``pipecat_jobs`` imports this module on first use."""

import warnings

from pipecat.workers.base_ui_worker import (
    BaseUIWorker as PipecatBaseUIWorker,  # pyright: ignore[reportDeprecated]
)
from pipecat.workers.ui import UIWorker as PipecatUIWorker

from pipecat_jobs._llm.pipeline_workers import BaseWorker
from pipecat_jobs._llm.worker import LLMContextWorker

__all__ = ["BaseUIWorker", "UIWorker"]


class UIWorker(PipecatUIWorker, LLMContextWorker):
    """Pipecat's ``UIWorker`` with jobs that always end, and :meth:`llm_turn`."""


with warnings.catch_warnings():
    # Pipecat 1.12 deprecates the class and warns of every subclass. A bot builder's own subclass
    # still gets the warning.
    warnings.simplefilter("ignore", DeprecationWarning)

    class BaseUIWorker(PipecatBaseUIWorker, BaseWorker):
        """Pipecat's ``BaseUIWorker`` with jobs that always end.

        Pipecat 1.12 deprecates its class in favour of :class:`UIWorker`.
        """
