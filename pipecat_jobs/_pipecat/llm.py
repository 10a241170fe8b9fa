"""The function calls and the runs of an LLM service."""

import asyncio
from collections.abc import Callable
from typing import Any

from pipecat.frames.frames import FunctionCallResultFrame
from pipecat.processors.aggregators import llm_context
from pipecat.processors.aggregators.llm_response_universal import LLMAssistantAggregator
from pipecat.services.llm_service import FunctionCallRunnerItem, LLMService

from pipecat_jobs._pipecat.loaded import is_of_loaded_class

# pyright: reportPrivateUsage=false, reportUnknownMemberType=false


async def cancel_function_call(llm: LLMService[Any], tool_call_id: str) -> None:
    """Cancel a function call that is running, whether or not it survives interruptions."""
    await llm._cancel_function_calls_by_tool_call_id(tool_call_id)


def function_call_timeout(llm: LLMService[Any], name: str) -> float | None:
    """Give the seconds after which Pipecat cancels a call of a function; None for never."""
    registered = llm._functions.get(name) or llm._functions.get(None)
    timeout = registered.timeout_secs if registered is not None else None
    return timeout or llm._function_call_timeout_secs


def take_queued_function_calls(
    llm: LLMService[Any], taken: Callable[[FunctionCallRunnerItem], bool]
) -> list[FunctionCallRunnerItem]:
    """Take calls that have not begun out of the queue of a service with ``run_in_parallel=False``.

    A call that is taken never runs, and no frame reports its end.
    """
    queue: asyncio.Queue[FunctionCallRunnerItem] | None
    queue = getattr(llm, "_sequential_runner_queue", None)
    if queue is None:
        return []
    waiting = [queue.get_nowait() for _ in range(queue.qsize())]
    for call in waiting:
        if not taken(call):
            queue.put_nowait(call)
    return [call for call in waiting if taken(call)]


def owes_run(aggregator: LLMAssistantAggregator) -> bool:
    """Return whether an aggregator has put off the run of the LLM on a function's result.

    It does so while the user or the bot speaks, and while more results are about to arrive.
    """
    if aggregator._push_context_on_bot_stopped_speaking:
        return True
    if hasattr(aggregator, "_context_push_owed"):
        return aggregator._context_push_owed
    # Pipecat 1.8 does not note it, and forgets the run that a user who speaks puts off.
    return aggregator._user_speaking or aggregator.has_queued_frame(FunctionCallResultFrame)


def forgo_owed_run(aggregator: LLMAssistantAggregator) -> None:
    """Have an aggregator drop the run of the LLM that it has put off."""
    aggregator._push_context_on_bot_stopped_speaking = False
    if hasattr(aggregator, "_context_push_owed"):
        aggregator._context_push_owed = False


def is_speech_to_speech(llm: LLMService[Any]) -> bool:
    """Return whether a service is a realtime one, which a message in its context does not run."""
    # The only realtime service that keeps the aggregators out of realtime mode.
    if is_of_loaded_class(llm, "pipecat.services.openai.live.llm", "OpenAILiveLLMService"):
        return True
    return llm.service_metadata_frame().is_realtime_service


#: The realtime services that do not take a message while the conversation goes on: their modules in
#: ``pipecat.services``, and their classes.
WITHOUT_MESSAGES = (
    ("azure.voice_live.llm", "AzureVoiceLiveLLMService"),
    ("inworld.realtime.llm", "InworldRealtimeLLMService"),
    ("nvidia.omni.llm", "NvidiaOmniLLMService"),
    ("openai.live.llm", "OpenAILiveLLMService"),
    ("ultravox.llm", "UltravoxRealtimeLLMService"),
)
#: Those that do not take one on Pipecat 1.8, and do on the newest.
WITHOUT_MESSAGES_AT_FIRST = (
    ("aws.nova_sonic.llm", "AWSNovaSonicLLMService"),
    ("openai.realtime.llm", "OpenAIRealtimeLLMService"),
    ("xai.realtime.llm", "GrokRealtimeLLMService"),
)

#: Whether they do: with this function they read the messages.
TAKES_MESSAGES = hasattr(llm_context, "standard_message_text")


def takes_messages(llm: LLMService[Any]) -> bool:
    """Return whether a message that is appended at a service has its model speak."""
    without = WITHOUT_MESSAGES if TAKES_MESSAGES else WITHOUT_MESSAGES + WITHOUT_MESSAGES_AT_FIRST
    return not any(
        is_of_loaded_class(llm, f"pipecat.services.{module}", name) for module, name in without
    )
