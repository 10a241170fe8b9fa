"""The code of the page "Jobs as tools" runs."""

import re
from dataclasses import fields
from pathlib import Path

from pipecat.flows import FlowManager
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.services.llm_service import FunctionCallParams
from support.snippets import ROOT, blocks, run, run_program
from support.tools_stage import tool_results, tool_schema

import pipecat_jobs
from pipecat_jobs.testing import ScriptedLLMServer, ToolCall
from pipecat_jobs.tools.options import JobToolKeywords, JobToolOptions, check_options

PAGE = "docs/how-to/tools.md"


async def test_the_program_runs_unchanged_and_prints_the_answer(
    tmp_path: Path, scripted_llm: ScriptedLLMServer
):
    scripted_llm.reply(ToolCall("find_book", {"title": "Moby Dick"}), "On shelf 7.")
    provider = {"OPENAI_API_KEY": "test", "OPENAI_BASE_URL": scripted_llm.base_url}

    printed = await run_program(blocks(PAGE, "python")[0], tmp_path, provider)

    assert printed.splitlines()[-1] == "On shelf 7."
    first, second = scripted_llm.requests
    assert tool_schema(first, "find_book")["parameters"]["properties"] == {
        "title": {"type": "string", "description": "The book's title."}
    }
    assert tool_results(second) == [{"shelf": "Moby Dick is on shelf 7"}]


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
