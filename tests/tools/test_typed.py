"""Job tools that are made from typed handlers."""

from typing import Literal

import pytest
from pipecat.bus.messages import BusJobRequestMessage
from pydantic import BaseModel
from support.tools_stage import NewLLM, new_llm, raise_stage, tool_results, tool_schema
from support.tools_talks import Talk

from pipecat_jobs import (
    BaseWorker,
    InvalidJobError,
    InvalidJobTypeError,
    JobTool,
    LLMContextWorker,
    job,
    job_tool,
    tool,
    tool_call,
)
from pipecat_jobs.testing import JobHarness, ScriptedLLMServer, ToolCall

__all__ = ["new_llm"]


class Shelf(BaseModel):
    room: str
    number: int


class Library(BaseWorker):
    asked: list[object]

    def __init__(self) -> None:
        super().__init__("library")
        self.asked = []

    @job(name="find a book", max_concurrency=2)
    async def find_book(
        self,
        message: BusJobRequestMessage,
        title: str,
        floor: Literal["ground", "first"] = "ground",
    ) -> Shelf:
        """Find out where a book stands.

        Args:
            message: The request.
            title: The book's title.
        """
        self.asked.append((title, floor))
        return Shelf(room=floor, number=7)

    @job
    async def without_a_docstring(self, title: str) -> None: ...

    @job(name="plain")
    async def plain(self, message: BusJobRequestMessage) -> None: ...


SCHEMA = {
    "name": "find_book",
    "description": "Find out where a book stands.",
    "parameters": {
        "type": "object",
        "properties": {
            "title": {"type": "string", "description": "The book's title."},
            "floor": {"type": "string", "enum": ["ground", "first"], "default": "ground"},
        },
        "required": ["title"],
    },
}

find_book = job_tool("library", job=Library.find_book, timeout=30)


async def test_a_typed_handler_is_a_tool_of_an_llm_workers_class(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    class Librarian(LLMContextWorker):
        find_book = job_tool("library", job=Library.find_book, timeout=30)

    scripted_llm.reply(ToolCall("find_book", {"title": "Emma", "floor": "first"}), "There.")
    library = Library()
    worker = Librarian("librarian", llm=new_llm(), active=True)
    stage = await raise_stage(job_harness, worker, library)
    await stage.say("Where is Emma?")

    first, second = await scripted_llm.wait_for_requests(2)
    assert tool_schema(first, "find_book") == SCHEMA
    assert library.asked == [("Emma", "first")]
    assert tool_results(second) == [{"room": "first", "number": 7}]
    await worker.flush_pipeline()


async def test_a_typed_handler_is_a_tool_of_a_context(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    scripted_llm.reply(ToolCall("find_book", {"title": "Emma"}), "There.")
    talk, library = Talk(new_llm(), [find_book]), Library()
    await job_harness.start(talk.worker, library)
    await talk.say()

    first, second = await scripted_llm.wait_for_requests(2)
    assert tool_schema(first, "find_book") == SCHEMA
    assert library.asked == [("Emma", "ground")]
    assert tool_results(second) == [{"room": "ground", "number": 7}]
    await talk.worker.flush_pipeline()


async def test_wrong_arguments_are_explained_to_the_llm_and_no_job_is_sent(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    scripted_llm.reply(ToolCall("find_book", {"title": "Emma", "floor": "third"}), "Sorry.")
    talk, library = Talk(new_llm(), [find_book]), Library()
    await job_harness.start(talk.worker, library)
    await talk.say()

    _, second = await scripted_llm.wait_for_requests(2)
    assert "'floor'" in tool_results(second)[0]["error"]
    assert not library.asked
    await talk.worker.flush_pipeline()


async def test_a_tool_call_asks_a_typed_handler(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    class Librarian(LLMContextWorker):
        @tool
        async def find(self, params, title: str):
            """Find a book."""
            async with tool_call(params) as call:
                shelf = await call.job("library", Library.find_book.request(title), timeout=30)
                request = Library.find_book.request(title)
                shelves = await call.job_group("library", request=request, timeout=30)
                await call.finish({"shelf": shelf.number, "same": shelves["library"] == shelf})

    scripted_llm.reply(ToolCall("find", {"title": "Emma"}), "There.")
    worker = Librarian("librarian", llm=new_llm(), active=True)
    stage = await raise_stage(job_harness, worker, Library())
    await stage.say("Where is Emma?")

    _, second = await scripted_llm.wait_for_requests(2)
    assert tool_results(second) == [{"shelf": 7, "same": True}]
    await worker.flush_pipeline()


def test_what_is_no_typed_handler_or_has_no_docstring_is_refused():
    assert isinstance(find_book, JobTool)
    with pytest.raises(InvalidJobTypeError, match="give a typed @job handler"):
        job_tool("library", job=Library.plain)
    with pytest.raises(InvalidJobTypeError, match="give a typed @job handler"):
        job_tool("library", job=print)  # type: ignore
    with pytest.raises(InvalidJobError, match="without_a_docstring"):
        job_tool("library", job=Library.without_a_docstring)
    with pytest.raises(TypeError, match="has no option tiemout"):
        job_tool("library", job=Library.find_book, tiemout=3)  # type: ignore
