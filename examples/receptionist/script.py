"""The guest's words, and the LLM: that of an API key, or one that follows a script."""

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from openai import AsyncOpenAI
from pipecat.processors.aggregators.llm_context import LLMContextMessage
from pipecat.services.llm_service import LLMService
from pipecat.services.openai.llm import OpenAILLMService

from pipecat_jobs.testing import ToolCall, ToolCalls
from pipecat_jobs.testing.voice import Answer, ScriptedLLM

INSTRUCTION = """\
You are the receptionist of three restaurants. Answer in one or two sentences. Find a table before \
you book it. Say something short when you ask the kitchen, because it takes a while to answer."""

#: The tool that is made for a question of a worker has a number behind this name.
ANSWER = "answer_question"


@dataclass(frozen=True)
class Line:
    """What the guest says, and what the scripted LLM says and does then."""

    text: str
    answer: Answer
    #: The number of reports that the guest has to be told before.
    reports: int = 0


def _order(*dishes: str) -> ToolCall:
    return ToolCall("order", {"table": "harbour 2", "dishes": list(dishes)})


def _drink(name: str) -> ToolCalls:
    return ToolCalls(ToolCall("bring_drink", {"table": "harbour 2", "drink": name}))


TABLE = Line(
    "A table for five at 20:00, please. I am Ada.",
    ToolCalls(ToolCall("find_table", {"guests": 5, "time": "20:00"})),
)
DUCK_TIME = Line(
    "How long does the duck take?",
    ToolCalls(ToolCall("find_cooking_time", {"dish": "duck"}), text="I ask the kitchen."),
)
WINE = Line("A bottle of red wine to harbour 2, please.", _drink("red wine"))
WATER = Line("And some water, please.", _drink("water"))
DUCK = Line(
    "Then the duck and a soup to harbour 2, please.",
    ToolCalls(_order("duck", "soup"), text="The kitchen is on it."),
    reports=1,
)
WITH_SAUCE = Line(
    "With sauce, please.", ToolCalls(ToolCall(ANSWER, {"answer": "with sauce"})), reports=1
)
CAKE = Line(
    "A cake to harbour 2 as well, please.",
    ToolCalls(_order("cake"), text="I tell the kitchen."),
)
IS_IT_COMING = Line("Is the food coming?", ToolCalls(ToolCall("list_jobs")))
COFFEE = Line(
    "And coffee for ten, please.",
    ToolCalls(_order(*["coffee"] * 10), text="Ten cups it is."),
    reports=2,
)
STOP = Line("Then stop the order.", ToolCalls(ToolCall("cancel_job", {"job": "order"})))
BOOKED = Line(
    "Which tables are booked for Ada?", ToolCalls(ToolCall("find_bookings", {"guest": "Ada"}))
)

GUEST = (TABLE, DUCK_TIME, WINE, DUCK, WITH_SAUCE, CAKE, IS_IT_COMING, COFFEE, STOP, BOOKED)
_ANSWERS = {line.text: line.answer for line in (*GUEST, WATER)}


def play(messages: Sequence[LLMContextMessage]) -> Answer:
    """Play the LLM: answer what is new since its last words or calls."""
    given = cast("Sequence[dict[str, Any]]", messages)
    contents = [(str(message["role"]), str(message.get("content") or "")) for message in given]
    own = [number for number, (role, _) in enumerate(contents) if role == "assistant"]
    new = contents[own[-1] + 1 if own else 0 :]
    for role, content in new:
        if role == "user":
            return _name_tool(_ANSWERS[content], contents)
    results = [result for _, content in new for result in _read(json.loads(content))]
    if len(results) == 1 and isinstance(answer := say(results[0]), ToolCalls):
        return answer
    return " ".join(str(say(result)) for result in results)


def _name_tool(answer: Answer, contents: Sequence[tuple[str, str]]) -> Answer:
    """Call the tool that was made for the last question."""
    if isinstance(answer, str) or answer.calls[0].name != ANSWER:
        return answer
    names = re.findall(rf"{ANSWER}_\d+", " ".join(content for _, content in contents))
    return ToolCalls(ToolCall(names[-1], answer.calls[0].arguments))


def _read(content: dict[str, Any]) -> Iterator[object]:
    """Read the results in a message: that of a tool, or those of a report."""
    match content:
        case {"type": "report", "reports": reports}:
            yield from (report["report"] for report in reports)
        case {"type": "async_tool"}:
            # Its result comes in a report.
            pass
        case _:
            yield content


def say(result: object) -> Answer:
    """Say a result, or go on with it."""
    match result:
        case {"answers": found}:
            [table] = [answer["result"] for answer in found.values()]
            booking = {"guest": "Ada", "time": "20:00", "table": table}
            return ToolCalls(ToolCall("book_table", booking))
        case {"number": number, "table": table, "time": time}:
            return f"{table} is yours at {time}. Your booking has the number {number}."
        case {"question": question}:
            return f"The kitchen asks: {question}"
        case {"jobs": [{"job": job}, *_]}:
            return f"The {job} is in the kitchen."
        case {"cancelled": job}:
            return f"The {job} is cancelled."
        case {"status": "The answer was passed on."}:
            return "I pass that on."
        case {"steered": _}:
            return "The kitchen adds it."
        case {"served": dishes}:
            return f"Here you are: {dishes}."
        case {"result": [{"table": table, "time": time}]}:
            return f"Only {table}, at {time}."
        case {"result": str(text)}:
            return f"{text[0].upper()}{text[1:]}."
        case {"result": inner}:
            return say(inner)
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


def find_llm(*, pace: float = 0.02) -> LLMService[Any]:
    """Make the LLM of ``OPENAI_API_KEY``, or one that follows the script.

    The scripted one writes a word in ``pace`` seconds.
    """
    if key := os.environ.get("OPENAI_API_KEY"):
        model = os.environ.get("OPENAI_MODEL") or "gpt-4.1-mini"
        settings = OpenAILLMService.Settings(model=model, system_instruction=INSTRUCTION)
        base_url = os.environ.get("OPENAI_BASE_URL") or None
        return _LLM(api_key=key, base_url=base_url, settings=settings)
    return ScriptedLLM(play, pace=pace)
