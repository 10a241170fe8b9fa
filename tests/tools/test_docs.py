"""What the page "Jobs as tools" says of tools is so."""

import re
from dataclasses import fields, replace

from support.llm_workers import NewLLM, new_llm
from support.snippets import ROOT, play, programs
from support.tools_stage import tool_results, tool_schema

from pipecat_jobs.testing import JobHarness, ScriptedLLMServer, ToolCall
from pipecat_jobs.tools.options import JobToolKeywords, JobToolOptions, check_options

__all__ = ["new_llm"]

PAGE = "docs/how-to/tools.md"


async def test_the_tool_of_the_page_describes_its_argument_and_gives_the_response_of_its_job(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    (program,) = programs(PAGE).values()
    names = await play(replace(program, below=[]))
    librarian = names["Librarian"]("librarian", llm=new_llm("You know books."))
    await job_harness.start(librarian, names["Library"]("library"))
    scripted_llm.reply(ToolCall("find_book", {"title": "Moby Dick"}), "On shelf 7.")

    assert await librarian.hear("Where is Moby Dick?") == "On shelf 7."

    first, second = scripted_llm.requests
    assert tool_schema(first, "find_book")["parameters"]["properties"] == {
        "title": {"type": "string", "description": "The book's title."}
    }
    assert tool_results(second) == [{"shelf": "Moby Dick is on shelf 7"}]


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
