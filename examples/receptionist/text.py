"""The guest and the receptionist write to each other."""

import asyncio
from contextlib import suppress
from typing import Any

from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair

from examples.receptionist.script import GUEST, find_llm
from examples.receptionist.stage import Reports, make_receptionist, running

#: Seconds for which the guest waits to be told something: a real LLM may not have asked for it.
_PATIENCE = 30


async def write() -> None:
    """Play the conversation."""
    context = LLMContextAggregatorPair(LLMContext())
    context.assistant().add_event_handler("on_assistant_turn_stopped", _print_words)
    receptionist = make_receptionist(find_llm(), context)
    reports = Reports(receptionist)
    async with running(receptionist):
        for line in GUEST:
            with suppress(TimeoutError):
                await asyncio.wait_for(reports.until_told(line.reports), _PATIENCE)
            print(f"guest: {line.text}")
            await receptionist.hear(line.text, timeout=60)


async def _print_words(_: Any, message: Any) -> None:
    """Print what the receptionist writes."""
    if message.content:
        print(f"receptionist: {message.content}")
