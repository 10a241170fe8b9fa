"""Pipecat's workers with the mixin added: import them from here instead of from Pipecat."""

from pipecat_jobs._llm.pipeline_workers import BaseWorker, LLMWorker, PipelineWorker
from pipecat_jobs._llm.worker import LLMContextWorker

__all__ = ["BaseWorker", "LLMContextWorker", "LLMWorker", "PipelineWorker"]
