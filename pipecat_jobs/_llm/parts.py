"""Finds the LLM of a worker's pipeline, and the two aggregators around it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from pipecat.pipeline.pipeline import Pipeline, PipelineSink, PipelineSource
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import (
    LLMAssistantAggregator,
    LLMContextAggregatorPair,
    LLMUserAggregator,
    LLMUserAggregatorParams,
)
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.services.llm_service import LLMService
from pipecat.turns.user_turn_strategies import ExternalUserTurnStrategies
from pipecat.workers.llm import LLMContextWorker, LLMWorker

from pipecat_jobs.errors import InvalidJobError


@dataclass(frozen=True, slots=True)
class LLMParts:
    """An LLM service between the two aggregators of one context, and the worker that has them."""

    worker: PipelineWorker
    llm: LLMService[Any]
    user_aggregator: LLMUserAggregator
    assistant_aggregator: LLMAssistantAggregator

    @property
    def context(self) -> LLMContext:
        """The context that both aggregators write."""
        return self.assistant_aggregator.context


def find_parts(worker: PipelineWorker) -> list[LLMParts]:
    """Find every LLM of a worker that is between the two aggregators of one context."""
    if isinstance(worker, LLMContextWorker):
        # Its properties, because its turns are followed before its pipeline is built.
        pair = worker.user_aggregator, worker.assistant_aggregator
        return [LLMParts(worker, worker.llm, *pair)]
    found: list[LLMParts] = []
    between: dict[LLMUserAggregator, list[LLMService[Any]]] = {}
    for processor in _walk(worker.pipeline):
        match processor:
            case LLMUserAggregator():
                between[processor] = []
            case LLMService():
                for llms in between.values():
                    llms.append(cast("LLMService[Any]", processor))
            case LLMAssistantAggregator():
                found += [
                    LLMParts(worker, llm, user, processor)
                    for user, llms in between.items()
                    if user.context is processor.context
                    for llm in llms
                ]
            case _:
                pass
    return found


def add_context(pipeline: Pipeline) -> Pipeline:
    """Put the two aggregators of a new context around an LLM that is alone in its pipeline."""
    structure = Pipeline | PipelineSource | PipelineSink
    inner = [each for each in _walk(pipeline) if not isinstance(each, structure)]
    if len(inner) != 1 or not isinstance(inner[0], LLMService):
        return pipeline
    # The default strategies load a model that finds the end of speech, and nobody speaks here.
    params = LLMUserAggregatorParams(user_turn_strategies=ExternalUserTurnStrategies())
    pair = LLMContextAggregatorPair(LLMContext(), user_params=params)
    return Pipeline([pair.user(), pipeline, pair.assistant()])


def refuse_parts(worker: PipelineWorker, found: list[LLMParts]) -> InvalidJobError:
    """Build the error for a worker that has no LLM between two aggregators, or several."""
    if found:
        names = ", ".join(str(parts.llm) for parts in found)
        return InvalidJobError(
            f"worker '{worker.name}' has {len(found)} LLM services between two aggregators "
            f"({names}), and a turn needs to know which one answers; let a worker with one LLM, "
            "such as an LLMContextWorker, have the turn"
        )
    if isinstance(worker, LLMWorker) and worker.bridged:
        return InvalidJobError(
            f"worker '{worker.name}' is bridged: its LLM answers a conversation whose context "
            "another worker has, and a turn would hold that conversation up; use fresh=True, or "
            "let an LLMWorker without bridged= have the turn"
        )
    return InvalidJobError(
        f"worker '{worker.name}' has no LLM service between the two aggregators of a context, "
        "where a turn has its messages; use an LLMContextWorker, or a PipelineWorker with "
        "Pipeline([..., pair.user(), llm, ..., pair.assistant()]), where pair is "
        "LLMContextAggregatorPair(context). fresh=True needs no aggregators"
    )


def find_llms(worker: PipelineWorker) -> list[LLMService[Any]]:
    """Find every LLM of a worker, wherever it is in the pipeline."""
    return [
        cast("LLMService[Any]", processor)
        for processor in _walk(worker.pipeline)
        if isinstance(processor, LLMService)
    ]


def find_only_llm(worker: PipelineWorker) -> LLMService[Any]:
    """Find the LLM of a worker whose pipeline has exactly one, wherever it is."""
    found = find_llms(worker)
    if len(found) == 1:
        return found[0]
    names = f" ({', '.join(str(llm) for llm in found)})" if found else ""
    raise InvalidJobError(
        f"worker '{worker.name}' has {len(found)} LLM services in its pipeline{names}, and a turn "
        "needs one; let a worker with one LLM, such as an LLMContextWorker, have the turn"
    )


def _walk(processor: FrameProcessor) -> Iterator[FrameProcessor]:
    """List the processors inside a processor, in the order in which frames go downstream."""
    for inner in processor.processors:
        yield inner
        yield from _walk(inner)
