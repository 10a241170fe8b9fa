"""Function calls that an LLM service keeps in a queue (``run_in_parallel=False``)."""

from typing import Any

from pipecat.frames.frames import (
    FunctionCallInProgressFrame,
    FunctionCallResultFrame,
    FunctionCallResultProperties,
)
from pipecat.services.llm_service import FunctionCallRunnerItem, LLMService


async def drop_calls(llm: LLMService[Any], calls: list[FunctionCallRunnerItem]) -> None:
    """Report function calls that were taken out of the queue as cancelled."""
    for call in calls:
        names = {"function_name": call.function_name, "tool_call_id": call.tool_call_id}
        await llm.broadcast_frame(
            FunctionCallInProgressFrame,
            **names,
            arguments=call.arguments,
            cancel_on_interruption=True,
            group_id=call.group_id,
        )
        # A FunctionCallCancelFrame would overtake the frame before it.
        await llm.broadcast_frame(
            FunctionCallResultFrame,
            **names,
            arguments=call.arguments,
            result="CANCELLED",
            properties=FunctionCallResultProperties(run_llm=False),
        )
