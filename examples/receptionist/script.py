"""The guest's words, and the LLM: that of an API key, or one that follows a script."""

import json
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from openai import AsyncOpenAI
from pipecat.services.openai.llm import OpenAILLMService

from pipecat_jobs.testing import LLMRequest, Reply, ScriptedLLMServer, ToolCall, ToolCalls

INSTRUCTION = """\
You are the receptionist of three restaurants. Answer in one or two sentences. Find a table before \
you book it. Say something short when you place an order, because it takes a while to cook."""

GUEST = (
    "A table for five at 20:00, please. I am Ada.",
    "Soup and fish to harbour 2, please.",
    "Is the food coming?",
    "A cake to harbour 2 as well, please.",
    "Then stop the order.",
    "And bring the cake.",
    "Which tables are booked for Ada?",
)


def play(request: LLMRequest) -> Reply | str:
    """Play the LLM: answer the guest's words, or the results of the tools."""
    said = [number for number, m in enumerate(request.messages) if m["role"] == "assistant"]
    new = request.messages[said[-1] + 1 if said else 0 :]
    for message in new:
        if message["role"] == "user":
            return answer_guest(str(message["content"]))
    results = [json.loads(str(message["content"])) for message in new]
    # The result of a tool in the background is in a message that says so.
    given = [result for result in results if result.get("type") != "async_tool"]
    late = [
        json.loads(result["result"]) for result in results if result.get("status") == "finished"
    ]
    return say_result((given + late)[0])


def answer_guest(text: str) -> Reply | str:
    """Call the tool for the guest's words."""
    order = {"table": "harbour 2", "dishes": ["soup", "fish"]}
    match GUEST.index(text):
        case 0:
            return ToolCall("find_table", {"guests": 5, "time": "20:00"})
        case 1:
            return ToolCalls(ToolCall("order", order), text="The kitchen is on it.")
        case 2:
            return ToolCall("list_jobs")
        case 3 | 5:
            return ToolCall("order", {**order, "dishes": ["cake"]})
        case 4:
            return ToolCall("cancel_job", {"job": "order"})
        case _:
            return ToolCall("find_bookings", {"guest": "Ada"})


def say_result(result: object) -> Reply | str:
    """Say the result of a tool, or go on with it."""
    match result:
        case {"answers": found}:
            [table] = [answer["result"] for answer in found.values()]
            return ToolCall("book_table", {"guest": "Ada", "time": "20:00", "table": table})
        case {"number": number, "table": table, "time": time}:
            return f"{table} is yours at {time}. Your booking has the number {number}."
        case {"jobs": [{"job": job}]}:
            return f"One {job} is in the kitchen."
        case {"cancelled": job}:
            return f"The {job} is cancelled."
        case {"result": [{"table": table, "time": time}]}:
            return f"Only {table}, at {time}."
        case {"result": served}:
            return f"Here you are: {served}."
        case {"error": why}:
            return f"I am sorry: {why}."
        case other:
            return str(other)


class _LLM(OpenAILLMService):
    """Pipecat's service, with its connections closed at the end."""

    def create_client(self, **arguments: Any) -> AsyncOpenAI:
        self._connections: AsyncOpenAI = super().create_client(**arguments)
        return self._connections

    async def cleanup(self) -> None:
        await super().cleanup()
        await self._connections.close()


@asynccontextmanager
async def find_llm() -> AsyncGenerator[OpenAILLMService, None]:
    """Make the LLM of ``OPENAI_API_KEY``, or one that follows the script."""
    if key := os.environ.get("OPENAI_API_KEY"):
        model = os.environ.get("OPENAI_MODEL") or "gpt-4.1-mini"
        settings = OpenAILLMService.Settings(model=model, system_instruction=INSTRUCTION)
        base_url = os.environ.get("OPENAI_BASE_URL") or None
        yield _LLM(api_key=key, base_url=base_url, settings=settings)
        return
    # With a proxy in the environment, requests to this machine's own server would go to the proxy.
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1"
    async with ScriptedLLMServer() as server:
        server.on(lambda request: True, play)
        yield _LLM(api_key="none", base_url=server.base_url)
