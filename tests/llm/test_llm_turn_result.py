"""What ``llm_turn()`` gives beside the text, and the limit of the LLM's runs."""

import asyncio
import json
import pickle
from typing import Any

import pytest
from support.llm_workers import Debater, NewLLM, Researcher, asked, last_asked, new_llm, start

from pipecat_jobs import InvalidJobError, InvalidJobTypeError, LLMTurn, LLMTurnError
from pipecat_jobs.testing import JobHarness, ScriptedLLMServer, ToolCall, ToolCalls

__all__ = ["new_llm"]


def look_up(word: str) -> ToolCall:
    return ToolCall("look_up", {"word": word})


async def test_a_turn_gives_its_calls_the_stop_reason_and_the_number_of_runs(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    server.reply(look_up("dog"), ToolCalls(look_up("cat"), look_up("fish")), "They are animals.")
    worker = Researcher(llm=new_llm("You research."))
    await start(job_harness, worker)

    turn = await worker.llm_turn("dogs")

    assert turn == "They are animals."
    assert [(call.name, call.arguments) for call in turn.calls] == [
        ("look_up", {"word": word}) for word in ("dog", "cat", "fish")
    ]
    assert [call.result["found"] for call in turn.calls] == [
        f"{word} in the book" for word in ("dog", "cat", "fish")
    ]
    assert turn.stop_reason == "stop"
    assert turn.runs == 3


async def test_a_fresh_turn_gives_the_stop_reason_and_one_run(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    server.reply("Dogs are loyal.")
    worker = Debater(llm=new_llm("You argue."))
    await start(job_harness, worker)

    turn = await worker.llm_turn("dogs", fresh=True)

    assert (turn, turn.calls, turn.stop_reason, turn.runs) == ("Dogs are loyal.", (), "stop", 1)


def test_a_turn_is_written_as_its_text():
    turn = LLMTurn("Dogs are loyal.", stop_reason="stop", runs=2)

    assert json.loads(json.dumps({"text": turn})) == {"text": "Dogs are loyal."}
    assert type(pickle.loads(pickle.dumps(turn))) is str
    assert f"{turn}" == str(turn) == pickle.loads(pickle.dumps(turn)) == "Dogs are loyal."
    assert type(str(turn)) is str


@pytest.mark.every_bus
async def test_a_job_can_respond_with_a_turn_on_every_bus(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    server.reply("Dogs are loyal.")
    requester = await start(job_harness, Debater(llm=new_llm("You argue.")))

    assert await requester.ask("dogs") == {"text": "Dogs are loyal."}


# The limit of the runs


async def test_a_turn_ends_before_a_function_begins_on_whose_result_the_llm_may_not_run(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    server.on(last_asked("dogs"), ToolCalls(look_up("dog"), text="Let me see."))
    server.on("dog in the book", ToolCalls(ToolCall("wait_here"), text="And now:"))
    server.on(last_asked("cats"), "Cats are aloof.")
    worker = Researcher(llm=new_llm("You research."))
    await start(job_harness, worker)

    with pytest.raises(LLMTurnError, match=r"still calls functions in run 2, and max_runs=2") as e:
        await worker.llm_turn("dogs", max_runs=2)

    assert e.value.max_runs == 2
    assert e.value.text == "And now:"
    assert worker.calls.empty()
    assert worker.context.messages == []
    assert await worker.llm_turn("cats", max_runs=1) == "Cats are aloof."
    assert asked(server.requests[-1]) == ["cats"]
    assert len(server.requests) == 3


async def test_a_turn_may_use_all_its_runs(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    server.reply(look_up("dog"), "Dogs are loyal.")
    worker = Researcher(llm=new_llm("You research."))
    await start(job_harness, worker)

    turn = await worker.llm_turn("dogs", max_runs=2)

    assert (turn, turn.runs) == ("Dogs are loyal.", 2)


async def test_a_background_function_that_outlasts_the_last_run_is_cancelled(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    # The LLM runs on the result of the first function while the second one still runs.
    server.on(last_asked("dogs"), ToolCalls(look_up("dog"), ToolCall("wait_behind")))
    server.on("dog in the book", "I am waiting.")
    llm = new_llm("You research.", group_parallel_tools=False)
    worker = Researcher(llm=llm)
    await start(job_harness, worker)

    with pytest.raises(LLMTurnError, match="max_runs=2"):
        await worker.llm_turn("dogs", max_runs=2)

    assert await worker.cancelled.get() == "wait_behind"
    assert worker.context.messages == []
    assert not worker.assistant_aggregator.has_function_calls_in_progress


async def test_the_context_of_a_turn_at_its_limit_can_be_kept(
    job_harness: JobHarness, server: ScriptedLLMServer, new_llm: NewLLM
):
    server.on(last_asked("dogs"), ToolCalls(look_up("dog"), text="Let me see."))
    worker = Researcher(llm=new_llm("You research."))
    await start(job_harness, worker)

    with pytest.raises(LLMTurnError, match="max_runs=1"):
        await worker.llm_turn("dogs", max_runs=1, keep_unfinished=True)

    left: list[Any] = worker.context.messages
    assert [message["content"] for message in left] == ["dogs", "Let me see."]
    assert not any(message.get("tool_calls") for message in left)


@pytest.mark.parametrize("max_runs", [0, -1, True, 1.5, "2"])
@pytest.mark.parametrize("fresh", [False, True])
async def test_a_limit_that_is_not_a_whole_number_from_one_is_refused(
    new_llm: NewLLM, max_runs: Any, fresh: bool
):
    worker = Debater(llm=new_llm("You argue."))

    kind = InvalidJobError if type(max_runs) is int else InvalidJobTypeError
    with pytest.raises(kind, match=r"max_runs is .*; give how many times the LLM may run"):
        await asyncio.wait_for(worker.llm_turn("dogs", max_runs=max_runs, fresh=fresh), 10)
