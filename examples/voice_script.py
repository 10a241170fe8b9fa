"""The LLM of the voice bot without a key: it understands "weather in ..." and "table"."""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, cast

from pipecat.processors.aggregators.llm_context import LLMContextMessage

from pipecat_jobs.testing import ToolCall, ToolCalls
from pipecat_jobs.testing.voice import Answer, ScriptedLLM

HELLO = "Hello! I can tell you the weather in a city, and book you a table. What can I do?"
ASKING = "I will ask the restaurant, and tell you when I know."
UNSURE = "I can look up the weather in a city, or book a table."

_NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}


def make_scripted_llm() -> ScriptedLLM:
    """Make an LLM service that follows the script."""
    return ScriptedLLM(answer)


def answer(messages: Sequence[LLMContextMessage]) -> Answer:
    """Answer what is new since the last words or calls of the assistant."""
    # The first message asks for a greeting.
    _, *given = cast("Sequence[dict[str, Any]]", messages)
    if not given:
        return HELLO
    own = [number for number, message in enumerate(given) if message["role"] == "assistant"]
    sentences: list[str] = []
    for message in given[own[-1] + 1 if own else 0 :]:
        content = str(message.get("content") or "")
        if message["role"] != "user":
            sentences.extend(_read(json.loads(content)))
        elif isinstance(reply := _answer_user(content), str):
            sentences.append(reply)
        else:
            return reply
    return " ".join(sentences)


def _answer_user(text: str) -> Answer:
    if city := re.search(r"weather in (\w+)", text, re.IGNORECASE):
        return ToolCalls(ToolCall("forecast", {"city": city[1]}))
    if "table" in text.lower():
        guests = re.search(r"\bfor (\w+)", text.lower())
        number = guests[1] if guests else ""
        count = int(number) if number.isdigit() else _NUMBERS.get(number, 2)
        return ToolCalls(ToolCall("book_table", {"guests": count}), text=ASKING)
    return UNSURE


def _read(content: dict[str, Any]) -> Iterator[str]:
    """Say the results in a message: that of a tool, or those of a report."""
    match content:
        case {"type": "report", "reports": reports}:
            for report in reports:
                yield from _read(report["report"])
        case {"result": dict(inner)}:
            yield from _read(inner)
        case {"result": str(text)}:
            yield f"{text[0].upper()}{text[1:]}."
        case {"error": why}:
            yield f"I am sorry: {why}."
        case _:
            # The call of a background tool, whose result comes in a report.
            pass
