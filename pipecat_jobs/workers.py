"""Pipecat's workers with the mixin on: import them from here instead of from Pipecat."""

from pipecat_jobs.llm import LLMContextWorker
from pipecat_jobs.pipeline_workers import BaseWorker, LLMWorker, PipelineWorker

__all__ = ["BaseWorker", "LLMContextWorker", "LLMWorker", "PipelineWorker"]
