"""Any value that a tool writes into the context can be sent to any provider."""

import dataclasses
import enum
import json
import math
from collections.abc import Awaitable, Callable
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pipecat.services.llm_service import FunctionCallParams
from support.tools_stage import (
    Colleague,
    NewLLM,
    Stage,
    calls_debate,
    new_llm,
    raise_stage,
    tool_results,
)

from pipecat_jobs import LLMContextWorker, ToolCallContext, job_tool, tool, tool_call
from pipecat_jobs._llm.context_value import to_context_value, to_encodable
from pipecat_jobs.testing import JobHarness, ScriptedLLMServer

__all__ = ["new_llm"]

HALF = "half \ud83d of a pair"
WHOLE = "half \ufffd of a pair"


class WithoutText:
    """An object whose ``str()`` raises."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class Kind(enum.Enum):
    ROOM = "room"


@dataclasses.dataclass
class Note:
    text: object


def nested(levels: int) -> dict[str, Any]:
    top: dict[str, Any] = {}
    inner = top
    for _ in range(levels):
        inner["next"] = inner = {}
    return top


def circle() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["self"] = value
    return value


def assert_can_be_sent(value: object) -> None:
    # Pipecat and the clients of the providers encode it this way.
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    text.encode()
    assert json.loads(text) == value


WRITTEN: list[tuple[object, object]] = [
    (HALF, WHOLE),
    ({HALF: [HALF]}, {WHOLE: [WHOLE]}),
    (Note(HALF), {"text": WHOLE}),
    ("\ud83d\ude00", "\U0001f600"),
    ("\ude00\ud83d", "\ufffd\ufffd"),
    (b"text \xc3\xa9 \xff", "text é \\xff"),
    ({"audio": bytearray(b"\xff")}, {"audio": "\\xff"}),
    (math.nan, "nan"),
    ([math.inf, -math.inf], ["inf", "-inf"]),
    (2**64, 2**64),
    (10**5000, hex(10**5000)),
    (circle(), {"self": "{'self': {...}}"}),
    (
        {1: "a", None: "b", (1, 2): "c", Kind.ROOM: "d"},
        {"1": "a", "None": "b", "[1, 2]": "c", "room": "d"},
    ),
    ({WithoutText(): 1}, {"<Unserializable WithoutText object>": 1}),
    ({frozenset([1]): 1}, {"[1]": 1}),
    ({"mute": WithoutText()}, {"mute": "<Unserializable WithoutText object>"}),
    ({1j}, ["1j"]),
    (KeyError, "<class 'KeyError'>"),
    (ValueError("why"), "why"),
    (Kind.ROOM, "room"),
    (MappingProxyType({"a": (1, None, True)}), {"a": [1, None, True]}),
]


@pytest.mark.parametrize(("value", "written"), WRITTEN, ids=range(len(WRITTEN)))
def test_values_that_json_cannot_express_are_written_as_text(value: object, written: object):
    assert to_context_value(value) == written
    assert_can_be_sent(to_context_value(value))


@pytest.mark.parametrize("levels", [90, 3_000])
def test_nesting_is_kept_up_to_the_depth_that_encoders_support(levels: int):
    written = to_context_value(nested(levels))

    assert_can_be_sent(written)
    for _ in range(90):
        written = written["next"]
    assert isinstance(written, dict)


LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.binary() | st.complex_numbers()
)
ANYTHING = st.recursive(
    LEAVES | st.text(st.characters()),
    lambda inner: st.lists(inner) | st.dictionaries(LEAVES | st.text(st.characters()), inner),
)


@pytest.mark.schedules
@given(ANYTHING)
def test_any_written_value_can_be_sent_and_writing_it_again_does_not_change_it(value: object):
    written = to_context_value(value)

    assert_can_be_sent(written)
    assert to_context_value(written) == written


@given(st.text(st.characters(codec="utf-8")))
def test_text_without_lone_surrogates_is_not_changed(text: str):
    assert to_encodable(text) == text


# In a bot


ODD = {
    "half of a pair": ({"text": HALF}, {"text": WHOLE}),
    "bytes": ({"audio": b"\xff\xfe"}, {"audio": "\\xff\\xfe"}),
    "not a number": ({"x": math.nan}, {"x": "nan"}),
}
#: Values that not every bus between processes can carry.
HANDED_OVER = {
    "a key of an odd type": ({(1, 2): "x"}, {"[1, 2]": "x"}),
    "a circle": (circle(), {"self": "{'self': {...}}"}),
    "no text": ({"mute": WithoutText()}, {"mute": "<Unserializable WithoutText object>"}),
}


async def assert_bot_goes_on(stage: Stage, server: ScriptedLLMServer) -> None:
    await stage.say("next question")
    *_, last = await server.wait_for_requests(3)
    await last.wait_ended()
    assert last.outcome == "completed"
    await stage.worker.flush_pipeline()


async def assert_written(
    harness: JobHarness, server: ScriptedLLMServer, llm: Any, response: Any, written: Any
) -> None:
    class Moderator(LLMContextWorker):
        @job_tool("critic", job="argue")
        async def debate(self, topic: str):
            """Analyze a topic."""
            return {"topic": topic}

    calls_debate(server, "Summary.", "Next.")
    worker = Moderator("moderator", llm=llm, active=True)
    stage = await raise_stage(harness, worker, Colleague("critic", response=response))
    await stage.say()

    _, second = await server.wait_for_requests(2)
    assert tool_results(second) == [written]
    await assert_bot_goes_on(stage, server)


@pytest.mark.parametrize(("response", "written"), ODD.values(), ids=ODD)
async def test_the_bot_goes_on_after_any_response_of_a_worker(
    job_harness: JobHarness,
    scripted_llm: ScriptedLLMServer,
    new_llm: NewLLM,
    response: Any,
    written: Any,
):
    await assert_written(job_harness, scripted_llm, new_llm(), response, written)


@pytest.mark.not_on("redis", "pubsub", reason="values that are not JSON do not cross a server")
@pytest.mark.parametrize(("response", "written"), HANDED_OVER.values(), ids=HANDED_OVER)
async def test_the_bot_goes_on_after_a_response_that_few_buses_carry(
    job_harness: JobHarness,
    scripted_llm: ScriptedLLMServer,
    new_llm: NewLLM,
    response: Any,
    written: Any,
):
    await assert_written(job_harness, scripted_llm, new_llm(), response, written)


@pytest.mark.parametrize(
    ("options", "result"),
    [
        ({"render": lambda _: HALF}, WHOLE),
        ({"render": lambda _: {HALF: HALF}}, {WHOLE: WHOLE}),
        ({"render": lambda _: {"kind": KeyError}}, {"kind": "<class 'KeyError'>"}),
        ({"render": lambda _: 0}, {"result": 0}),
    ],
)
async def test_the_bot_goes_on_after_any_result_of_render(
    job_harness: JobHarness,
    scripted_llm: ScriptedLLMServer,
    new_llm: NewLLM,
    options: Any,
    result: Any,
):
    class Moderator(LLMContextWorker):
        @job_tool("critic", job="argue", **options)
        async def debate(self, topic: str):
            """Analyze a topic."""
            return {"topic": topic}

    calls_debate(scripted_llm, "Summary.", "Next.")
    worker = Moderator("moderator", llm=new_llm(), active=True)
    stage = await raise_stage(job_harness, worker, Colleague("critic"))
    await stage.say()

    _, second = await scripted_llm.wait_for_requests(2)
    assert tool_results(second) == [result]
    await assert_bot_goes_on(stage, scripted_llm)


async def finish_with_half(call: ToolCallContext) -> None:
    await call.finish(HALF)


async def finish_with_zero(call: ToolCallContext) -> None:
    await call.finish(0)


async def report_half(call: ToolCallContext) -> None:
    await call.report({"found": HALF})
    await call.finish("done")


@pytest.mark.parametrize(
    ("body", "reported", "result"),
    [
        (finish_with_half, [], WHOLE),
        (finish_with_zero, [], {"result": 0}),
        (report_half, [{"found": WHOLE}], "done"),
    ],
)
async def test_the_bot_goes_on_after_any_result_of_a_hand_written_tool(
    job_harness: JobHarness,
    scripted_llm: ScriptedLLMServer,
    new_llm: NewLLM,
    body: Callable[[ToolCallContext], Awaitable[None]],
    reported: list[Any],
    result: Any,
):
    class Moderator(LLMContextWorker):
        @tool(cancel_on_interruption=False)
        async def debate(self, params: FunctionCallParams, topic: str):
            """Analyze a topic."""
            async with tool_call(params) as call:
                await body(call)

    calls_debate(scripted_llm, "Summary.", "Next.")
    worker = Moderator("moderator", llm=new_llm(), active=True)
    stage = await raise_stage(job_harness, worker)
    await stage.say()

    await scripted_llm.wait_for_requests(2)
    assert stage.reported == reported
    assert stage.results == [result]
    await assert_bot_goes_on(stage, scripted_llm)


async def test_the_bot_goes_on_after_any_arguments_of_its_llm(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    class Moderator(LLMContextWorker):
        @job_tool("critic", job="argue")
        async def debate(self, topic: str):
            """Analyze a topic."""
            return {"topic": topic}

    calls_debate(scripted_llm, "Summary.", "Next.", topic=HALF)
    critic = Colleague("critic")
    worker = Moderator("moderator", llm=new_llm(), active=True)
    stage = await raise_stage(job_harness, worker, critic)
    await stage.say()

    _, second = await scripted_llm.wait_for_requests(2)
    assert critic.payloads == [{"topic": WHOLE}]
    assert tool_results(second) == [{"text": "critic says"}]
    await assert_bot_goes_on(stage, scripted_llm)


@pytest.mark.parametrize("say", [HALF, lambda _: HALF])
async def test_text_that_the_bot_says_while_a_tool_runs_can_be_sent_to_a_speech_service(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM, say: Any
):
    class Moderator(LLMContextWorker):
        @job_tool("critic", job="argue", say_after=0.01, say=say)
        async def debate(self, topic: str):
            """Analyze a topic."""
            return {"topic": topic}

    critic = Colleague("critic", holds=True)
    calls_debate(scripted_llm)
    worker = Moderator("moderator", llm=new_llm(), active=True)
    stage = await raise_stage(job_harness, worker, critic)
    await stage.say()

    await stage.until(lambda: bool(stage.spoken))
    critic.release.set()
    await scripted_llm.wait_for_requests(2)
    assert stage.spoken == [WHOLE]
    await worker.flush_pipeline()
