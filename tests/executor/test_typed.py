"""Typed handlers: their arguments come from the payload, and their result is the response."""

import asyncio
import datetime
import enum
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Protocol

import pytest
from pipecat.bus.messages import BusJobRequestMessage, BusJobResponseMessage
from pipecat.workers.base_worker import BaseWorker as PipecatBaseWorker
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from pipecat_jobs import (
    BaseWorker,
    InvalidJobError,
    InvalidJobResponseError,
    InvalidJobTypeError,
    JobInterceptor,
    JobRefusal,
    JobRefusedError,
    OutcomeStatus,
    job,
)
from pipecat_jobs.testing import JobHarness

pytestmark = pytest.mark.every_bus


class Shelf(BaseModel):
    room: str
    number: int = 1


@dataclass
class Reader:
    name: str
    born: datetime.date


class Fine(TypedDict):
    cents: int


class Kind(enum.Enum):
    NOVEL = "novel"
    POEM = "poem"


class Library(BaseWorker):
    def __init__(self, name: str = "library"):
        super().__init__(name)
        self.begun: list[str] = []

    @job
    async def find_book(self, title: str, shelf: int | None = None) -> Shelf:
        self.begun.append(title)
        return Shelf(room=title, number=shelf or 7)

    @job(name="lend it", max_concurrency=1)
    async def lend(
        self,
        kind: Kind,
        to: Reader,
        days: Annotated[int, Field(gt=0)] = 14,
        how: Literal["home", "here"] = "home",
    ) -> Reader:
        assert isinstance(kind, Kind)
        return replace(to, name=f"{to.name}, {kind.value}, {days}, {how}")

    @job
    async def fine(self, days: int) -> Fine:
        return {"cents": 10 * days}

    @job
    async def count(self) -> int:
        return 3

    @job
    async def list_shelves(self, rooms: list[str]) -> list[Shelf]:
        return [Shelf(room=room) for room in rooms]

    @job
    async def look(self, title: str) -> Shelf | None:
        return Shelf(room="A") if title else None

    @job
    async def close(self) -> None:
        self.begun.append("close")

    @job
    async def scan(self, page: bytes) -> bytes:
        return page[::-1]

    @job
    async def read(self, title: str) -> AsyncIterator[Shelf]:
        for number in range(2):
            yield Shelf(room=title, number=number)

    @job
    async def who(self, message: BusJobRequestMessage, title: str) -> str:
        return f"{message.source} wants {title}"

    @job
    async def note(self, title: str, **fields: Any) -> dict[str, Any]:
        return {"title": title, **fields}

    @job
    async def wrong(self) -> Shelf:
        return {"number": 1}  # type: ignore


async def start(job_harness: JobHarness, *others: BaseWorker) -> tuple[BaseWorker, Library]:
    requester, library = BaseWorker("requester"), Library()
    await job_harness.start(requester, library, *others)
    return requester, library


ANNA = Reader("Anna", datetime.date(1990, 1, 2))

RESULTS: list[tuple[Any, Any, dict[str, Any]]] = [
    (Library.find_book.request(title="A"), Shelf(room="A", number=7), {"room": "A", "number": 7}),
    (Library.find_book.request("A", 2), Shelf(room="A", number=2), {"room": "A", "number": 2}),
    (
        Library.lend.request(Kind.POEM, to=ANNA),
        Reader("Anna, poem, 14, home", ANNA.born),
        {"name": "Anna, poem, 14, home", "born": "1990-01-02"},
    ),
    (Library.fine.request(days=2), {"cents": 20}, {"cents": 20}),
    (Library.count.request(), 3, {"result": 3}),
    (
        Library.list_shelves.request(rooms=["A", "B"]),
        [Shelf(room="A"), Shelf(room="B")],
        {"result": [{"room": "A", "number": 1}, {"room": "B", "number": 1}]},
    ),
    (
        Library.look.request(title="A"),
        Shelf(room="A"),
        {"result": {"room": "A", "number": 1}},
    ),
    (Library.look.request(title=""), None, {"result": None}),
    (Library.close.request(), None, {}),
    (Library.scan.request(page=b"\xff\x00"), b"\x00\xff", {"result": b"\x00\xff"}),
    (Library.who.request(title="A"), "requester wants A", {"result": "requester wants A"}),
    (Library.note.request("A", by="B"), {"title": "A", "by": "B"}, {"title": "A", "by": "B"}),
]


async def test_a_response_is_typed_for_its_requester_and_plain_json_on_the_bus(
    job_harness: JobHarness,
):
    requester, _ = await start(job_harness)
    for request, typed, plain in RESULTS:
        async with requester.job("library", request, timeout=30) as j:
            pass
        assert j.response == typed
        assert type(j.response) is type(typed)
        assert j.outcome is not None
        assert j.outcome.response == plain


async def test_a_typed_job_is_asked_by_name_and_gives_a_dict(job_harness: JobHarness):
    requester, _ = await start(job_harness)
    payload = {"kind": "novel", "to": {"name": "Anna", "born": "1990-01-02"}, "days": "3"}
    found = await requester.job("library", name="lend it", payload=payload, timeout=30)
    assert found == {"name": "Anna, novel, 3, home", "born": "1990-01-02"}
    assert await requester.job("library", name="count", timeout=30) == {"result": 3}


async def test_a_plain_pipecat_worker_asks_a_typed_handler(job_harness: JobHarness):
    got: asyncio.Queue[Any] = asyncio.Queue()

    class Plain(PipecatBaseWorker):
        async def on_bus_message(self, message):
            if isinstance(message, BusJobResponseMessage):
                got.put_nowait(message.response)
            else:
                await super().on_bus_message(message)

    plain, library = Plain("plain"), Library()
    await job_harness.start(plain, library)
    await plain.send_bus_message(
        BusJobRequestMessage(
            source="plain",
            target="library",
            job_id="1",
            job_name="find_book",
            payload={"title": "A"},
        )
    )
    async with asyncio.timeout(30):
        assert await got.get() == {"room": "A", "number": 7}


async def test_await_gives_the_typed_response(job_harness: JobHarness):
    requester, _ = await start(job_harness)
    request = Library.find_book.request(title="A")
    assert await requester.job("library", request, timeout=30) == Shelf(room="A", number=7)


async def test_a_group_is_typed_by_worker(job_harness: JobHarness):
    requester, _ = await start(job_harness, Library("archive"))
    request = Library.find_book.request(title="A")
    found = await requester.job_group("library", "archive", request=request, timeout=30)
    assert found == {"library": Shelf(room="A", number=7), "archive": Shelf(room="A", number=7)}


async def test_request_job_takes_a_request(job_harness: JobHarness):
    got: asyncio.Queue[Any] = asyncio.Queue()

    class Host(BaseWorker):
        async def on_job_response(self, message):
            got.put_nowait(message.response)

    host = Host("host")
    await job_harness.start(host, Library(), Library("archive"))
    await host.request_job("library", Library.count.request())
    assert await got.get() == {"result": 3}
    await host.request_job_group("library", "archive", request=Library.count.request())
    assert [await got.get(), await got.get()] == [{"result": 3}, {"result": 3}]


async def test_the_chunks_of_a_stream_are_plain_json(job_harness: JobHarness):
    requester, _ = await start(job_harness)
    chunks: list[Any] = []
    async with requester.job("library", Library.read.request(title="A"), timeout=30) as j:
        async for event in j:
            chunks.append(event.data)
    assert chunks == [None, {"room": "A", "number": 0}, {"room": "A", "number": 1}, None]
    assert j.response is None


WRONG: list[tuple[str, dict[str, Any] | None, list[str]]] = [
    ("find_book", None, ["'title' is missing", "title: str, shelf: int | None = None"]),
    ("find_book", {"title": 5}, ["'title': Input should be a valid string"]),
    ("find_book", {"title": "secret", "shelf": "secret"}, ["'shelf': Input should be a valid"]),
    ("find_book", {"title": "secret", "shelve": 1}, ["'shelve' is not known"]),
    ("lend it", {"kind": "secret", "to": {"name": "secret"}}, ["'kind'", "'novel' or 'poem'"]),
    ("lend it", {"kind": "novel", "to": {"name": "secret"}}, ["'to.born' is missing"]),
    ("count", {"secret": 1}, ["'secret' is not known", "it takes ()"]),
]


@pytest.mark.parametrize("intercepted", [False, True])
@pytest.mark.parametrize(("name", "payload", "said"), WRONG)
async def test_a_wrong_payload_is_refused_before_the_handler_begins(
    job_harness: JobHarness,
    name: str,
    payload: dict[str, Any] | None,
    said: list[str],
    intercepted: bool,
):
    requester, library = await start(job_harness)
    if intercepted:
        library.add_job_interceptor(JobInterceptor())
    with pytest.raises(JobRefusedError) as caught:
        await requester.job("library", name=name, payload=payload, timeout=30)

    outcome = caught.value.outcomes["library"]
    assert outcome.refusal is JobRefusal.INVALID_PAYLOAD
    assert outcome.status is OutcomeStatus.FAILED
    assert all(part in str(caught.value) for part in said), str(caught.value)
    assert "secret" not in str(outcome.error).replace("'secret' is not known", "")
    assert not library.begun


@pytest.mark.not_on("redis", reason="its router keeps a request until a process has a free slot")
async def test_a_wrong_payload_does_not_wait_for_a_slot(job_harness: JobHarness):
    begun = asyncio.Event()

    class Busy(BaseWorker):
        @job(sequential=True)
        async def work(self, hours: int) -> None:
            begun.set()
            await asyncio.Event().wait()

    requester = BaseWorker("requester")
    await job_harness.start(requester, Busy("busy"))
    async with asyncio.timeout(60):
        job_id = await requester.request_job("busy", Busy.work.request(hours=1))
        await begun.wait()
        with pytest.raises(JobRefusedError):
            await requester.job("busy", name="work", payload={"hours": "many"})
        await requester.cancel_job_group(job_id)


async def test_an_interceptor_may_replace_the_payload_of_a_typed_handler(job_harness: JobHarness):
    class AddTitle(JobInterceptor):
        async def handle(self, request, proceed):
            return await proceed(replace(request, payload={"title": "added"}))

    requester, library = await start(job_harness)
    library.add_job_interceptor(AddTitle())
    found = await requester.job("library", name="find_book", payload={"wrong": 1}, timeout=30)
    assert found == {"room": "added", "number": 7}


async def test_an_interceptor_added_while_the_job_waits_has_its_payload_used(
    job_harness: JobHarness,
):
    class Shout(JobInterceptor):
        async def handle(self, request, proceed):
            return await proceed(replace(request, payload={"text": "LOUD"}))

    class Echo(BaseWorker):
        def __init__(self):
            super().__init__("echo")
            self.begun, self.release = asyncio.Event(), asyncio.Event()

        @job(sequential=True)
        async def echo(self, text: str) -> str:
            self.begun.set()
            await self.release.wait()
            return text

        @job
        async def ping(self) -> None: ...

    requester, echo = BaseWorker("requester"), Echo()
    await job_harness.start(requester, echo)
    async with requester.job("echo", Echo.echo.request("soft"), timeout=30) as first:
        await echo.begun.wait()
        async with requester.job("echo", Echo.echo.request("soft"), timeout=30) as second:
            # It arrives behind the second request, which then waits for the slot.
            await requester.job("echo", Echo.ping.request(), timeout=30)
            echo.add_job_interceptor(Shout())
            echo.release.set()
    assert (first.response, second.response) == ("soft", "LOUD")


async def test_a_result_that_does_not_fit_its_annotation_is_an_error(job_harness: JobHarness):
    requester, _ = await start(job_harness)
    async with requester.job_group("library", name="wrong", cancel_on_error=False) as group:
        pass
    outcome = group.outcomes["library"]
    assert outcome.status is OutcomeStatus.ERROR
    assert "the handler returned dict, which does not fit its annotation" in str(outcome.error)
    assert "'room' is missing" in str(outcome.error)


class Elsewhere(Protocol):
    """The jobs of a library whose code is elsewhere."""

    @job
    async def find_book(self, title: str, shelf: int | None = None) -> Shelf: ...

    @job
    async def count(self) -> str: ...


class Implementation(BaseWorker, Elsewhere):
    @job
    async def find_book(self, title: str, shelf: int | None = None) -> Shelf:
        return Shelf(room=title)


async def test_a_protocol_serves_where_the_code_of_the_worker_is_elsewhere(
    job_harness: JobHarness,
):
    requester, _ = await start(job_harness, Implementation("implementation"))
    request = Elsewhere.find_book.request(title="A")
    assert await requester.job("library", request, timeout=30) == Shelf(room="A", number=7)
    assert await requester.job("implementation", request, timeout=30) == Shelf(room="A")


async def test_a_response_that_does_not_fit_names_worker_and_fields_without_values(
    job_harness: JobHarness,
):
    class Old(BaseWorker):
        @job
        async def find_book(self, title: str, shelf: int | None = None) -> dict[str, Any]:
            return {"number": "secret"}

    requester, _ = await start(job_harness, Old("old"))
    request = Elsewhere.find_book.request(title="A")
    with pytest.raises(InvalidJobResponseError) as caught:
        async with requester.job("old", request, timeout=30):
            pass
    error = caught.value
    assert error.worker == "old"
    assert any("'room' is missing" in problem for problem in error.problems)
    assert "worker 'old' completed job 'find_book'" in str(error)
    assert error.outcomes["old"].completed
    assert "secret" not in str(error)
    assert error.__cause__ is None

    with pytest.raises(InvalidJobResponseError):
        await requester.job_group("library", "old", request=request, timeout=30)
    with pytest.raises(InvalidJobResponseError, match="valid string"):
        await requester.job("library", Elsewhere.count.request(), timeout=30)


async def test_a_group_that_goes_on_after_a_failure_has_the_typed_responses(
    job_harness: JobHarness,
):
    class Closed(BaseWorker):
        @job
        async def find_book(self, title: str, shelf: int | None = None) -> Shelf:
            raise ValueError("closed")

    requester, _ = await start(job_harness, Closed("closed"))
    async with requester.job_group(
        "library",
        "closed",
        request=Library.find_book.request(title="A"),
        cancel_on_error=False,
        timeout=30,
    ) as group:
        pass
    assert group.responses == {"library": Shelf(room="A", number=7)}


async def test_the_method_is_called_directly_as_before():
    class Branch(Library):
        @job
        async def find_book(self, title: str, shelf: int | None = None) -> Shelf:
            return await super().find_book(title, shelf=9)

    assert await Branch().find_book("A") == Shelf(room="A", number=9)
    assert [chunk.number async for chunk in Branch().read("A")] == [0, 1]


async def test_a_subclass_overrides_a_typed_handler(job_harness: JobHarness):
    class Branch(Library):
        @job
        async def find_book(self, title: str, shelf: int | None = None, *, floor: int = 0) -> Shelf:
            return Shelf(room=f"{title} on {floor}")

    requester, _ = await start(job_harness, Branch("branch"))
    request = Branch.find_book.request(title="A", floor=3)
    assert await requester.job("branch", request, timeout=30) == Shelf(room="A on 3")


async def test_a_plain_pipecat_worker_does_not_call_a_typed_handler_with_a_message(
    job_harness: JobHarness,
):
    called: list[Any] = []
    requested = asyncio.Event()

    class Plain(PipecatBaseWorker):
        @job
        async def find_book(self, title: str) -> None:
            called.append(title)

        async def on_job_request(self, message):
            requested.set()
            await self.send_job_response(message.job_id, {})

    requester = BaseWorker("requester")
    await job_harness.start(requester, Plain("plain"))
    await requester.job("plain", name="find_book", payload={"title": "A"}, timeout=30)
    assert requested.is_set()
    assert not called


async def test_a_name_and_payloads_are_refused_beside_a_request(job_harness: JobHarness):
    requester, _ = await start(job_harness)
    request = Library.count.request()
    with pytest.raises(InvalidJobError, match="name is given beside request"):
        requester.job("library", request, name="count")
    with pytest.raises(InvalidJobError, match="payload is given beside request"):
        requester.job_group("library", request=request, payload={})
    with pytest.raises(InvalidJobError, match="payloads is given beside request"):
        requester.job_group("library", request=request, payloads={"library": {}})
    with pytest.raises(InvalidJobTypeError, match="give what request"):
        requester.job("library", "count")  # type: ignore
