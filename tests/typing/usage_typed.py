"""The types that pyright infers for typed jobs; `make lint` runs pyright over it.

As in ``usage.py``: each ignored error has to occur.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol, assert_type

from pipecat.bus.messages import BusJobRequestMessage
from pipecat.services.llm_service import FunctionCallParams

from pipecat_jobs import (
    BaseWorker,
    JobContext,
    JobGroupContext,
    JobRequest,
    JobTool,
    LLMWorker,
    job,
    job_tool,
    tool,
    tool_call,
)


@dataclass
class Shelf:
    room: str


class Library(BaseWorker):
    @job
    async def find_book(self, title: str, shelf: int | None = None) -> Shelf:
        """Find a book."""
        return Shelf(room=f"{title} {shelf}")

    @job()
    async def with_parentheses(self, title: str) -> list[Shelf]:
        return [await self.find_book(title)]

    @job(name="lend", sequential=True, run_once=True)
    async def with_options(self, *, title: str, days: int = 14) -> None: ...

    @job(max_concurrency=2)
    async def data(self, fields: dict[str, Any]) -> dict[str, Any]:
        return fields

    @job
    async def open_ended(self, /, title: str, **fields: Any) -> int:
        return len(title) + len(fields)

    @job
    async def with_message(self, message: BusJobRequestMessage, title: str) -> str:
        return f"{message.source} {title}"

    @job
    async def of_message(self, message: BusJobRequestMessage) -> dict[str, Any]:
        return {"source": message.source}

    @job
    async def pages(self, title: str) -> AsyncIterator[Shelf]:
        yield Shelf(room=title)

    @job
    async def pages_of_message(self, message: BusJobRequestMessage) -> AsyncIterator[Any]:
        yield {}

    @job
    def not_async(self, title: str) -> int:
        return len(title)


class Branch(Library):
    @job
    async def find_book(self, title: str, shelf: int | None = None) -> Shelf:
        return await super().find_book(title, shelf=shelf)


class Elsewhere(Protocol):
    @job
    async def find_book(self, title: str, shelf: int | None = None) -> Shelf: ...


class Implementation(BaseWorker, Elsewhere):
    @job
    async def find_book(self, title: str, shelf: int | None = None) -> Shelf:
        return Shelf(room=title)


def a_request_has_the_type_of_the_response() -> None:
    assert_type(Library.find_book.request(title="a"), JobRequest[Shelf])
    assert_type(Library.find_book.request("a", 3), JobRequest[Shelf])
    assert_type(Library.with_parentheses.request("a"), JobRequest[list[Shelf]])
    assert_type(Library.with_options.request(title="a"), JobRequest[None])
    assert_type(Library.data.request(fields={"a": 1}), JobRequest[dict[str, Any]])
    assert_type(Library.open_ended.request(title="a", by="b"), JobRequest[int])
    assert_type(Library.with_message.request(title="a"), JobRequest[str])
    assert_type(Library.of_message.request({"a": 1}), JobRequest[dict[str, Any]])
    assert_type(Library.pages.request(title="a"), JobRequest[None])
    assert_type(Library.pages_of_message.request({}), JobRequest[dict[str, Any]])
    assert_type(Branch.find_book.request(title="a"), JobRequest[Shelf])
    assert_type(Elsewhere.find_book.request(title="a"), JobRequest[Shelf])
    assert_type(Implementation.find_book.request(title="a"), JobRequest[Shelf])


async def a_job_is_typed_by_its_request(worker: BaseWorker) -> None:
    request = Library.find_book.request(title="a")
    assert_type(await worker.job("library", request, timeout=5), Shelf)
    async with worker.job("library", request, timeout=5) as j:
        assert_type(j, JobContext[Shelf])
    assert_type(j.response, Shelf)
    async with worker.job_group("a", "b", request=request, timeout=5) as group:
        assert_type(group, JobGroupContext[Shelf])
    assert_type(group.responses, dict[str, Shelf])
    assert_type(await worker.job_group("a", request=request), dict[str, Shelf])
    assert_type(await worker.request_job("library", request), str)
    assert_type(await worker.request_job_group("library", request=request), str)


async def a_job_by_name_gives_a_dict(worker: BaseWorker) -> None:
    assert_type(worker.job("library", name="find_book"), JobContext)
    assert_type(await worker.job("library", name="find_book"), dict[str, Any])
    assert_type(await worker.job_group("library"), dict[str, dict[str, Any]])


async def a_handler_is_a_method(library: Library, message: BusJobRequestMessage) -> None:
    assert_type(await library.find_book("a", shelf=3), Shelf)
    assert_type(await library.with_message(message, title="a"), str)
    assert_type(await library.of_message(message=message), dict[str, Any])
    async for page in library.pages("a"):
        assert_type(page, Shelf)
    await library.find_book(3)  # pyright: ignore[reportArgumentType]


class Librarian(LLMWorker):
    find_book = job_tool("library", job=Library.find_book, timeout=5)

    @tool
    async def look(self, params: FunctionCallParams, title: str) -> None:
        """Look for a book."""
        async with tool_call(params) as call:
            request = Library.find_book.request(title)
            assert_type(await call.job("library", request, timeout=5), Shelf)
            assert_type(call.job_group("library", request=request), JobGroupContext[Shelf])


def a_tool_needs_no_body(librarian: Librarian) -> None:
    assert_type(librarian.find_book, JobTool)
    assert_type(job_tool("library", job=Elsewhere.find_book), JobTool)


def mistakes_are_seen(worker: BaseWorker) -> None:
    Library.find_book.request()  # pyright: ignore[reportCallIssue]
    Library.find_book.request(titel="a")  # pyright: ignore[reportCallIssue]
    Library.find_book.request(title=3)  # pyright: ignore[reportArgumentType]
    Library.with_options.request("a")  # pyright: ignore[reportCallIssue]
    Library.with_message.request()  # pyright: ignore[reportCallIssue]
    Library.not_async.request(title="a")  # pyright: ignore[reportAttributeAccessIssue]
    worker.job("library", "find_book")  # pyright: ignore[reportCallIssue, reportArgumentType]
    worker.job_group("library", request="find_book")  # pyright: ignore[reportCallIssue, reportArgumentType]
    job_tool("library", job=3)  # pyright: ignore[reportCallIssue, reportArgumentType]
