"""The schema of a job tool, and the check of the LLM's arguments."""

from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, Literal

import pytest
from pipecat.services.llm_service import FunctionCallParams
from pydantic import BaseModel, Field
from support.tools_stage import (
    Colleague,
    NewLLM,
    calls_debate,
    new_llm,
    raise_stage,
    tool_results,
    tool_schema,
)

from pipecat_jobs import InvalidJobError, InvalidJobTypeError, LLMContextWorker, job_tool
from pipecat_jobs.testing import JobHarness, ScriptedLLMServer, ToolCall

__all__ = ["new_llm"]


class Style(Enum):
    FORMAL = "formal"
    CASUAL = "casual"


class Place(BaseModel):
    city: str
    title: str = Field(description="What the place is called.")


@dataclass
class Limits:
    words: int
    tone: Literal["calm", "loud"] = "calm"


class Moderator(LLMContextWorker):
    """Takes arguments of every kind, and passes them on in its job."""

    def __init__(self, llm: Any):
        super().__init__("moderator", llm=llm, active=True)
        self.given: list[tuple[Any, ...]] = []

    @job_tool("advocate", job="argue")
    async def debate(
        self,
        params: FunctionCallParams,
        topic: str,
        style: Style,
        tone: Literal["calm", "loud"] = "calm",
        rounds: Annotated[int, Field(ge=1, le=5)] = 1,
        place: Place | None = None,
        points: list[str] = [],  # noqa: B006
        limits: Limits | None = None,
    ):
        """Analyze a topic from multiple perspectives.

        Args:
            params: The call.
            topic: The topic to debate.
            style: How to speak.
            rounds: How many rounds.
        """
        assert params.function_name == "debate"
        self.given.append((topic, style, tone, rounds, place, points, limits))
        return {"topic": topic}


async def test_the_provider_gets_a_schema_with_every_type_and_description(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    scripted_llm.reply("Hello.")
    stage = await raise_stage(job_harness, Moderator(new_llm()))
    await stage.say()

    (request,) = await scripted_llm.wait_for_requests(1)
    schema = tool_schema(request)
    limits, _ = schema["parameters"]["properties"]["limits"]["anyOf"]
    # Only newer releases of pydantic say of a dataclass that it has no other fields.
    limits.pop("additionalProperties", None)
    assert schema == {
        "name": "debate",
        "description": "Analyze a topic from multiple perspectives.",
        "parameters": {
            "type": "object",
            "properties": {
                "topic": {"type": "string", "description": "The topic to debate."},
                "style": {
                    "type": "string",
                    "enum": ["formal", "casual"],
                    "description": "How to speak.",
                },
                "tone": {"type": "string", "enum": ["calm", "loud"], "default": "calm"},
                "rounds": {
                    "type": "integer",
                    "minimum": 1,
                    "maximum": 5,
                    "default": 1,
                    "description": "How many rounds.",
                },
                "place": {
                    "anyOf": [
                        {
                            "type": "object",
                            "properties": {
                                "city": {"type": "string"},
                                "title": {
                                    "type": "string",
                                    "description": "What the place is called.",
                                },
                            },
                            "required": ["city", "title"],
                        },
                        {"type": "null"},
                    ]
                },
                "points": {"type": "array", "items": {"type": "string"}, "default": []},
                "limits": {
                    "anyOf": [
                        {
                            "type": "object",
                            "properties": {
                                "words": {"type": "integer"},
                                "tone": {
                                    "type": "string",
                                    "enum": ["calm", "loud"],
                                    "default": "calm",
                                },
                            },
                            "required": ["words"],
                        },
                        {"type": "null"},
                    ]
                },
            },
            "required": ["topic", "style"],
        },
    }
    await stage.worker.flush_pipeline()


async def test_the_method_gets_typed_arguments_and_its_defaults(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    place = {"city": "Oslo", "title": "Town hall"}
    calls_debate(
        scripted_llm, topic="AI", style="casual", rounds="3", place=place, limits={"words": 9}
    )
    worker = Moderator(new_llm())
    stage = await raise_stage(job_harness, worker, Colleague("advocate"))
    await stage.say()
    await scripted_llm.wait_for_requests(2)

    town_hall = Place(city="Oslo", title="Town hall")
    assert worker.given == [("AI", Style.CASUAL, "calm", 3, town_hall, [], Limits(9))]
    await worker.flush_pipeline()


@pytest.mark.parametrize(
    ("arguments", "explanation"),
    [
        ({"topic": "AI"}, "'style' is missing."),
        ({"topic": "AI", "style": "rude"}, "'style' is 'rude': Input should be 'formal' or"),
        ({"topic": 7, "style": "formal"}, "'topic' is 7: Input should be a valid string."),
        (
            {"topic": "AI", "style": "formal", "rounds": 9},
            "'rounds' is 9: Input should be less than or equal to 5.",
        ),
        (
            {"topic": "AI", "style": "formal", "points": ["a", 2]},
            "'points.1' is 2: Input should be a valid string.",
        ),
        (
            {"topic": "AI", "style": "formal", "place": {"city": "Oslo"}},
            "'place.title' is missing.",
        ),
        (
            {"topic": "AI", "style": "formal", "colour": "red"},
            "'colour' is not known; the arguments are: 'topic', 'style', 'tone', 'rounds', ",
        ),
    ],
)
async def test_invalid_arguments_are_explained_to_the_llm_and_no_job_is_sent(
    job_harness: JobHarness,
    scripted_llm: ScriptedLLMServer,
    new_llm: NewLLM,
    arguments: dict[str, Any],
    explanation: str,
):
    right = {"topic": "AI", "style": "formal"}
    calls_debate(scripted_llm, ToolCall("debate", right), "Done.", **arguments)
    worker, advocate = Moderator(new_llm()), Colleague("advocate")
    stage = await raise_stage(job_harness, worker, advocate)
    await stage.say()

    _, second, third = await scripted_llm.wait_for_requests(3)
    (error,) = tool_results(second)
    assert error["error"].startswith("debate was not run, its arguments are wrong. ")
    assert explanation in error["error"]
    assert "http" not in error["error"]
    assert tool_results(third) == [error, {"text": "advocate says"}]
    assert len(advocate.payloads) == 1
    await worker.flush_pipeline()


def test_a_parameter_may_have_a_name_that_pydantic_keeps_for_itself():
    @job_tool("advocate")
    async def debate(model_config: str, schema: int, _hidden: bool = False):
        """Analyze a topic."""
        return {}

    assert list(debate.properties) == ["model_config", "schema", "_hidden"]
    assert debate.required == ["model_config", "schema"]


def test_a_parameter_called_title_keeps_its_schema():
    @job_tool("advocate")
    async def debate(title: str):
        """Analyze a topic."""
        return {}

    assert debate.properties == {"title": {"type": "string"}}


def test_a_tool_may_take_no_arguments():
    @job_tool("advocate")
    async def debate():
        """Analyze a topic."""
        return {}

    assert (debate.name, debate.properties, debate.required) == ("debate", {}, [])


# Functions that cannot be tools


class Tree(BaseModel):
    branches: list["Tree"] = []


async def no_docstring(topic: str): ...
async def no_annotation(topic):
    """Analyze a topic."""


def not_async(topic: str):
    """Analyze a topic."""


async def any_positional(*topics: str):
    """Analyze topics."""


async def any_keyword(**topics: str):
    """Analyze topics."""


async def positional_only(topic: str, /):
    """Analyze a topic."""


async def late_params(topic: str, params: FunctionCallParams):
    """Analyze a topic."""


async def late_flow_manager(topic: str, flow_manager: object):
    """Analyze a topic."""


async def strange_type(topic: Colleague):
    """Analyze a topic."""


async def endless_type(topic: Tree):
    """Analyze a topic."""


async def unknown_type(topic: "Nowhere"):  # noqa: F821
    """Analyze a topic."""


@pytest.mark.parametrize(
    ("function", "error", "advice"),
    [
        (no_docstring, InvalidJobError, "has no docstring; write one that describes the tool"),
        (no_annotation, InvalidJobError, "annotate it, e.g. 'topic: str'"),
        (not_async, InvalidJobTypeError, "needs an 'async def' function"),
        (any_positional, InvalidJobError, "write each one out"),
        (any_keyword, InvalidJobError, "write each one out"),
        (positional_only, InvalidJobError, "write each one out"),
        (late_params, InvalidJobError, "'params' after other parameters; make it the first"),
        (
            late_flow_manager,
            InvalidJobError,
            "'flow_manager' after other parameters; make it the first",
        ),
        (strange_type, InvalidJobTypeError, "of a type that an LLM cannot give"),
        (endless_type, InvalidJobTypeError, "a Tree, which contains itself"),
        (unknown_type, InvalidJobError, "define or import it above"),
    ],
)
def test_a_function_that_an_llm_cannot_call_is_refused(
    function: Any, error: type[Exception], advice: str
):
    with pytest.raises(error, match=advice.replace("(", r"\(")) as caught:
        job_tool("advocate")(function)
    assert type(caught.value) is error
