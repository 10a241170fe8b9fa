"""Pipecat's workers without an LLM context, with the mixin added."""

from pipecat.pipeline.worker import PipelineWorker as PipecatPipelineWorker
from pipecat.workers.llm import LLMWorker as PipecatLLMWorker

from pipecat_jobs._llm.mixin import JobsMixin

# Each is a subclass of the one before, as in Pipecat, so that isinstance() checks go on working.


class BaseWorker(JobsMixin):
    """Pipecat's ``BaseWorker`` with jobs that always end: a worker without a pipeline."""


class PipelineWorker(PipecatPipelineWorker, BaseWorker):
    """Pipecat's ``PipelineWorker`` with jobs that always end."""


class LLMWorker(PipecatLLMWorker, PipelineWorker):
    """Pipecat's ``LLMWorker`` with jobs that always end."""
