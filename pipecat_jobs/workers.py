"""Pipecat's workers with the mixin on: import them from here instead of from Pipecat."""

from pipecat.pipeline.worker import PipelineWorker as PipecatPipelineWorker
from pipecat.workers.base_worker import BaseWorker as PipecatBaseWorker
from pipecat.workers.llm import LLMWorker as PipecatLLMWorker

from pipecat_jobs.llm import LLMContextWorker
from pipecat_jobs.mixin import JobsMixin

__all__ = ["BaseWorker", "LLMContextWorker", "LLMWorker", "PipelineWorker"]


class BaseWorker(JobsMixin, PipecatBaseWorker):
    """Pipecat's ``BaseWorker`` with jobs that always end: a worker without a pipeline."""


class PipelineWorker(JobsMixin, PipecatPipelineWorker):
    """Pipecat's ``PipelineWorker`` with jobs that always end."""


class LLMWorker(JobsMixin, PipecatLLMWorker):
    """Pipecat's ``LLMWorker`` with jobs that always end."""
