"""The code of the page "Jobs as tools" runs."""

import re
from dataclasses import fields

from pipecat.flows import FlowManager
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.services.llm_service import FunctionCallParams
from support.snippets import ROOT, blocks, run
from support.tools_stage import Stage, tool_results, tool_schema

import pipecat_jobs
from pipecat_jobs.testing import JobHarness, ScriptedLLMServer, ToolCall
from pipecat_jobs.tools.options import JobToolKeywords, JobToolOptions, check_options

PAGE = "docs/tools.md"


async def test_the_first_snippet_gives_the_user_an_answer(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, monkeypatch
):
    monkeypatch.setenv("OPENAI_BASE_URL", scripted_llm.base_url)
    scripted_llm.reply(ToolCall("find_book", {"title": "Emma"}), "On shelf 7")
    names: dict[str, object] = {"__name__": "snippet", "openai_key": "none"}
    await run(blocks(PAGE, "python")[0], names)
    host, library = names["host"], names["library"]
    stage = Stage(host)
    await job_harness.start(host, library)
    await stage.say("Where is Emma?")

    first, second = await scripted_llm.wait_for_requests(2)
    assert tool_schema(first, "find_book")["parameters"]["properties"] == {
        "title": {"type": "string", "description": "The book's title."}
    }
    assert tool_results(second) == [{"shelf": "Emma is on shelf 7"}]
    await host.flush_pipeline()
    await host.llm._client.close()


async def test_the_other_snippets_run():
    names: dict[str, object] = {
        **{name: getattr(pipecat_jobs, name) for name in pipecat_jobs.__all__},
        "__name__": "snippet",
        "FlowManager": FlowManager,
        "FunctionCallParams": FunctionCallParams,
        "LLMContext": LLMContext,
    }
    for block in blocks(PAGE, "python")[1:]:
        await run(block, names)


def test_every_option_is_in_the_table_with_its_default():
    text = (ROOT / PAGE).read_text().split("## Options")[1].split("##")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", text, re.MULTILINE))
    assert rows.keys() == JobToolKeywords.__optional_keys__ | {"job"}
    defaults = check_options(("worker",), None, {})
    for field in fields(JobToolOptions):
        written = rows.get(field.name, "").strip("`").replace('"', "")
        if field.name not in ("workers", "tool_timeout", "progress", "say"):
            value = getattr(defaults, field.name)
            assert written == (f"{value:g}" if isinstance(value, float) else str(value))
