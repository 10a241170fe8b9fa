"""The messages that the page about troubleshooting quotes are those of the code."""

import asyncio
import builtins
import gc
import importlib
import re
import sys
import time
import warnings
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime

import pytest
from pipecat.bus.messages import BusJobCancelMessage
from pipecat.frames.frames import LLMMessagesAppendFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair
from pipecat.services.openai.llm import OpenAILLMService
from pipecat.workers.base_worker import BaseWorker as PipecatBaseWorker
from pipecat.workers.llm import LLMWorker as PipecatLLMWorker
from pipecat.workers.runner import WorkerRunner
from support.llm_workers import NewLLM, new_llm
from support.snippets import ROOT, blocks
from support.workers import until

from pipecat_jobs import (
    BaseWorker,
    InvalidJobError,
    JobError,
    JobNotEndedError,
    LLMContextWorker,
    PipelineWorker,
    UnknownJobError,
    WorkerNotAddedError,
    job,
    job_tool,
)
from pipecat_jobs.bus.redis import EmbeddedRedis, RedisStreamsBus
from pipecat_jobs.errors import BusUnavailableError, DuplicateWorkerError
from pipecat_jobs.testing import (
    ChaosBus,
    Failure,
    JobHarness,
    LeftBehindError,
    ScriptedLLMServer,
    Text,
    ToolCall,
)
from pipecat_jobs.testing.fixtures import LogRecord

__all__ = ["new_llm"]

PAGE = "docs/troubleshooting.md"
#: Long messages are broken into lines there.
QUOTES = [" ".join(quote.split()) for quote in blocks(PAGE, "text")]

#: What stands for a name, a number or an id in a quote.
ANYTHING = "…"


class Library(BaseWorker):
    @job
    async def find_book(self, title: str) -> str:
        await asyncio.Event().wait()
        return title


class Middle(BaseWorker):
    """Its ``find_book`` asks another worker."""

    def __init__(self, name: str):
        super().__init__(name)
        self.failed = asyncio.Queue[str]()

    @job
    async def find_book(self, title: str) -> str:
        request = Library.find_book.request(title=title)
        self.failed.put_nowait(await error_of(self.job("archive", request, timeout=60)))
        return title


class Counting(BaseWorker):
    @job
    async def count_books(self) -> int:
        time.sleep(0.4)  # noqa: ASYNC251
        return 1


class Closed(Library):
    takes_jobs_when_inactive = False


class ByMessage(BaseWorker):
    @job(name="find_book")
    async def find_book(self, message):
        return "shelf 7"


class Critic(LLMContextWorker):
    @job
    async def review(self, title: str) -> str:
        return await self.llm_turn(f"Review {title}.", timeout=60)


EMMA = Library.find_book.request(title="Emma")
REVIEW = Critic.review.request(title="Emma")


class Stage:
    """What a provocation may use."""

    def __init__(
        self,
        harness: JobHarness,
        server: ScriptedLLMServer,
        make_llm: NewLLM,
        log: list[LogRecord],
    ):
        self.harness = harness
        self.server = server
        self.make_llm = make_llm
        self.log = log
        self.host = BaseWorker("host")

    async def start(self, *workers: PipecatBaseWorker) -> None:
        await self.harness.start(self.host, *workers)

    async def review(self, llm: OpenAILLMService | None = None) -> str:
        await self.start(Critic("critic", llm=llm or self.make_llm("You review.")))
        return await error_of(self.host.job("critic", REVIEW, timeout=60))


@pytest.fixture
def stage(
    job_harness: JobHarness,
    scripted_llm: ScriptedLLMServer,
    new_llm: NewLLM,
    job_log: list[LogRecord],
) -> Stage:
    return Stage(job_harness, scripted_llm, new_llm, job_log)


Provocation = Callable[[Stage], Awaitable[str]]
PROVOCATIONS: dict[str, Provocation] = {}


def says(beginning: str) -> Callable[[Provocation], Provocation]:
    """Mark what provokes the quote that begins so."""

    def mark(provoke: Provocation) -> Provocation:
        PROVOCATIONS[beginning] = provoke
        return provoke

    return mark


async def error_of(
    asking: Awaitable[object], kind: type[Exception] | tuple[type[Exception], ...] = JobError
) -> str:
    with pytest.raises(kind) as caught:
        await asking
    return str(caught.value)


@says("timeout: job 'find_book' was not sent, 'library'")
async def ask_without_a_runner(stage: Stage) -> str:
    runner, host = WorkerRunner(handle_sigint=False), BaseWorker("host")
    await runner.add_workers(host)
    return await error_of(host.job("library", EMMA, timeout=0.2))


@says("timeout: job 'find_book' was not sent, 'libary'")
async def misspell_the_worker(stage: Stage) -> str:
    await stage.start(Library("library"))
    return await error_of(stage.host.job("libary", EMMA, timeout=0.1))


@says("worker 'host' has not been added")
async def leave_the_worker_out(stage: Stage) -> str:
    return await error_of(stage.host.job("library", EMMA), WorkerNotAddedError)


@says("there is another worker named")
async def add_a_second_worker_of_the_name(stage: Stage) -> str:
    await stage.start(Library("library"))
    return await error_of(stage.host.add_workers(Library("library")), DuplicateWorkerError)


@says("worker 'library' did not run job 'findbook'")
async def misspell_the_job(stage: Stage) -> str:
    await stage.start(Library("library"))
    return await error_of(stage.host.job("library", name="findbook", timeout=60))


@says("worker 'library' did not run job 'find_book': worker 'library' is inactive")
async def ask_an_inactive_worker(stage: Stage) -> str:
    await stage.start(Closed("library", active=False))
    return await error_of(stage.host.job("library", EMMA, timeout=60))


@says("the job for 'library' was never requested")
async def forget_to_await(stage: Stage) -> str:
    await stage.start()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        stage.host.job("library", EMMA)
        gc.collect()
    (warning,) = [each for each in caught if each.category is RuntimeWarning]
    return str(warning.message)


@says("worker 'library' did not run job 'find_book': the payload")
async def misspell_a_field(stage: Stage) -> str:
    await stage.start(Library("library"))
    wrong = {"titel": "Emma"}
    return await error_of(stage.host.job("library", name="find_book", payload=wrong, timeout=60))


@says("timeout: job 'find_book' got no response from 'library'")
async def ask_a_slow_worker(stage: Stage) -> str:
    await stage.start(Library("library"))
    return await error_of(stage.host.job("library", EMMA, timeout=0.1))


@says("timeout: job 'find_book' got no response from 'archive'")
async def inherit_a_deadline(stage: Stage) -> str:
    bus, middle = ChaosBus(), Middle("library")
    # The cancel of the outer job would end the inner one at the same moment.
    held = bus.hold(BusJobCancelMessage)
    async with JobHarness(bus) as harness:
        await harness.start(stage.host, middle, Library("archive"))
        await error_of(stage.host.job("library", EMMA, timeout=0.3))
        error = await middle.failed.get()
        held.release()
    return error


@says("timeout: job 'count_books'")
async def block_the_loop(stage: Stage) -> str:
    await stage.start(Counting("library"))
    return await error_of(stage.host.job("library", Counting.count_books.request(), timeout=0.2))


@says("Worker 'library': handler of job")
async def resist_a_cancel(stage: Stage) -> str:
    resisted = asyncio.Event()

    class Stubborn(BaseWorker):
        job_cancel_grace = 0.05

        @job
        async def find_book(self, title: str) -> str:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await resisted.wait()
            return title

    await stage.start(Stubborn("library"))
    await error_of(stage.host.job("library", EMMA, timeout=0.1))

    def find() -> list[str]:
        return [each.message for each in stage.log if "resists" in each.message]

    await until(find)
    resisted.set()
    return find()[0]


@says("worker 'library' was lost")
async def ask_a_worker_that_has_ended(stage: Stage) -> str:
    library = Library("library")
    await stage.start(library)
    await stage.harness.end(library)
    return await error_of(stage.host.job("library", EMMA, timeout=60))


@says("job 'find_book' at 'library' cancelled")
async def end_a_worker_that_has_a_job(stage: Stage) -> str:
    library = Library("library")
    await stage.start(library)

    async def ask() -> None:
        async with stage.host.job("library", EMMA, timeout=60):
            await stage.harness.end(library)

    return await error_of(ask())


@says("worker 'library' errored at job 'find_book': InvalidJobTypeError")
async def return_a_text_for_a_message(stage: Stage) -> str:
    await stage.start(ByMessage("library"))
    return await error_of(stage.host.job("library", name="find_book", timeout=60))


@says("job '…' at worker 'library' has not ended")
async def read_the_response_too_early(stage: Stage) -> str:
    await stage.start(Library("library"))

    async def ask() -> None:
        async with stage.host.job("library", EMMA, timeout=60) as asked:
            assert asked.response

    return await error_of(ask(), JobNotEndedError)


@says("worker 'library': job '4711'")
async def respond_to_an_unknown_job(stage: Stage) -> str:
    library = Library("library")
    await stage.start(library)
    return await error_of(library.send_job_response("4711", {}), UnknownJobError)


@says("Host.find_book() has @job_tool")
async def write_a_tool_without_an_llm(stage: Stage) -> str:
    async def find_book(self: object, title: str) -> dict[str, object]:
        """Find a book."""
        return {"title": title}

    with pytest.raises(InvalidJobError) as caught:
        type("Host", (BaseWorker,), {"find_book": job_tool("library", job="find_book")(find_book)})
    return str(caught.value)


@says("tool find_book() has no docstring")
async def write_a_tool_without_a_docstring(stage: Stage) -> str:
    with pytest.raises(InvalidJobError) as caught:
        job_tool("library", job=Library.find_book)
    return str(caught.value)


@says("find_book is not set up correctly")
async def run_a_tool_on_a_plain_worker(stage: Stage) -> str:
    class Bot(PipecatLLMWorker):
        @job_tool("library", job="find_book")
        async def find_book(self, title: str):
            """Find a book."""
            return {"title": title}

    llm, pair = stage.make_llm("You help."), LLMContextAggregatorPair(LLMContext())
    pipeline = Pipeline([pair.user(), llm, pair.assistant()])
    bot = Bot("bot", llm=llm, pipeline=pipeline, active=True)
    await stage.start(bot)
    stage.server.reply(ToolCall("find_book", {"title": "Emma"}), "I am sorry.")
    question = {"role": "user", "content": "Where is Emma?"}
    await bot.queue_frame(LLMMessagesAppendFrame([question], run_llm=True))
    *_, last = await stage.server.wait_for_requests(2)
    assert any("InvalidJobTypeError" in each.message for each in stage.log)
    (said,) = re.findall(r'"error": "(.*?)"', str(last.messages[-1]["content"]))
    return said


@says("the LLM turn of worker 'critic' gave no answer: the LLM gave an empty answer")
async def answer_nothing(stage: Stage) -> str:
    stage.server.reply("")
    return (await stage.review()).partition("LLMTurnError: ")[2]


@says("worker 'critic' errored at job 'review': LLMTurnError: …: Error during completion: Error")
async def use_a_wrong_key(stage: Stage) -> str:
    stage.server.reply(Failure(401, "Incorrect API key provided", retryable=False))
    return await stage.review()


@says("worker 'critic' errored at job 'review': LLMTurnError: …: the provider cut")
async def use_up_the_tokens(stage: Stage) -> str:
    stage.server.reply(Text("Emma is", finish_reason="length"))
    return await stage.review()


@says("worker 'critic' errored at job 'review': LLMTurnError: …: Error during completion: Conn")
async def use_a_wrong_address(stage: Stage) -> str:
    llm = stage.make_llm("You review.")
    await stage.server.stop()
    return await stage.review(llm)


@says("worker 'host' has no LLM service")
async def turn_without_a_context(stage: Stage) -> str:
    host = PipelineWorker(Pipeline([]), name="host")
    await stage.harness.start(host)
    return await error_of(host.llm_turn("Hello."), InvalidJobError)


async def send_to_another_process(stage: Stage, payload: dict[str, object]) -> str:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(EmbeddedRedis(start_timeout=100.0))
        for worker in (stage.host, Library("library")):
            bus = RedisStreamsBus(server.url, channel="troubleshooting")
            await (await stack.enter_async_context(JobHarness(bus))).start(worker)
        request = stage.host.job("library", name="find_book", payload=payload, timeout=60)
        return await error_of(request)


@says("worker 'library' errored at job 'find_book': MessageTypeError")
async def send_a_datetime(stage: Stage) -> str:
    return await send_to_another_process(stage, {"when": datetime.now(UTC)})


@says("worker 'library' errored at job 'find_book': MessageTooLargeError")
async def send_two_megabytes(stage: Stage) -> str:
    return await send_to_another_process(stage, {"text": "x" * 2_000_000})


@says("the Redis server could not be reached")
async def start_without_a_server(stage: Stage) -> str:
    bus = RedisStreamsBus("redis://127.0.0.1:1", channel="troubleshooting", start_timeout=0.1)
    runner = WorkerRunner(bus=bus, handle_sigint=False)
    return await error_of(runner.run(), BusUnavailableError)


@says("the package '…' is missing")
async def import_the_kit_without_its_extra(stage: Stage) -> str:
    import_module = builtins.__import__

    def refuse(name: str, *arguments: object, **keywords: object) -> object:
        if name == "aiohttp":
            raise ModuleNotFoundError("No module named 'aiohttp'", name="aiohttp")
        return import_module(name, *arguments, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        for name in [each for each in sys.modules if each.startswith("pipecat_jobs.testing")]:
            patch.delitem(sys.modules, name)
        patch.setattr(builtins, "__import__", refuse)
        with pytest.raises(ImportError) as caught:
            importlib.import_module("pipecat_jobs.testing")
    return str(caught.value)


@says("left behind")
async def leave_a_task(stage: Stage) -> str:
    forgotten = None
    with pytest.raises(LeftBehindError) as caught:
        async with JobHarness():
            forgotten = asyncio.create_task(asyncio.Event().wait(), name="forgotten")
    assert forgotten is not None
    forgotten.cancel()
    return str(caught.value)


@says("no reply is scripted")
async def script_too_little(stage: Stage) -> str:
    # The lowest openai shows the whole body of the response.
    (said,) = re.findall(r"no reply is scripted .* for all others\.", await stage.review())
    return said


def to_pattern(quote: str) -> str:
    return ".+".join(re.escape(part) for part in quote.split(ANYTHING))


def find_provocation(quote: str) -> Provocation | None:
    """Find the provocation of a quote: that with the longest beginning."""
    fitting = [each for each in PROVOCATIONS if re.match(to_pattern(each), quote)]
    return PROVOCATIONS[max(fitting, key=len)] if fitting else None


def test_every_quote_is_provoked_and_every_provocation_is_quoted():
    assert len(QUOTES) > 20
    provoked = [find_provocation(quote) for quote in QUOTES]
    assert [quote for quote, by in zip(QUOTES, provoked, strict=True) if by is None] == []
    assert set(provoked) == set(PROVOCATIONS.values())


@pytest.mark.parametrize("quote", [pytest.param(each, id=each[:50]) for each in QUOTES])
async def test_the_code_says_what_the_page_quotes(stage: Stage, quote: str):
    provoke = find_provocation(quote)
    assert provoke is not None
    said = " ".join((await provoke(stage)).split())
    assert re.fullmatch(to_pattern(quote), said), f"{quote}\nis not\n{said}"


async def test_the_tools_of_a_context_are_listed_as_the_page_says(stage: Stage):
    class Bot(LLMContextWorker):
        @job_tool("library", job="find_book")
        async def find_book(self, title: str):
            """Find a book."""
            return {"title": title}

    bot = Bot("bot", llm=stage.make_llm("You help."))
    await stage.start(bot)
    stage.server.reply("Hello.")
    await bot.hear("Hello.")
    assert [each.name for each in bot.context.tools.standard_tools] == ["find_book"]
    assert stage.server.requests[-1].tools == ["find_book"]


async def test_a_worker_that_is_waited_for_is_shown_as_unready(stage: Stage):
    await stage.start()
    asking = asyncio.create_task(error_of(stage.host.job("nobody", EMMA, timeout=0.2)))
    await until(lambda: stage.host.open_jobs)
    assert [each.state for each in stage.host.open_jobs] == ["unready"]
    await asking


async def test_a_fault_of_a_handler_reaches_the_llm_as_its_type(stage: Stage):
    class Broken(BaseWorker):
        @job
        async def find_book(self, title: str) -> str:
            """Find a book."""
            raise ValueError("a secret")

    class Bot(LLMContextWorker):
        find_book = job_tool("library", job=Broken.find_book)

    bot = Bot("bot", llm=stage.make_llm("You help."))
    await stage.start(Broken("library"), bot)
    stage.server.reply(ToolCall("find_book", {"title": "Emma"}), "I am sorry.")
    await bot.hear("Where is Emma?")
    read = "find_book had an internal error (ValueError)"
    assert stage.server.requests[-1].mentions(read)
    assert f"`{read}`" in (ROOT / PAGE).read_text()


async def test_reports_that_are_not_said_have_the_reasons_of_the_page(stage: Stage):
    class Bot(LLMContextWorker):
        def holds_reports(self) -> bool:
            return True

    bot = Bot("bot", llm=stage.make_llm("You help."))
    await stage.start(bot)
    expired = await bot.report("news", expires_after=0.05)
    await expired.until_settled()
    dropped = await bot.report("news")
    await stage.harness.end(bot)
    await dropped.until_settled()
    for receipt in (expired, dropped):
        row = f"| `{receipt.state}`: `{receipt.history[-1].reason}` |"
        assert row in (ROOT / PAGE).read_text()


async def test_a_timeout_of_asyncio_has_no_text(stage: Stage):
    await stage.start(Library("library"))

    async def ask() -> None:
        async with asyncio.timeout(0.1):
            await stage.host.job("library", EMMA)

    assert await error_of(ask(), TimeoutError) == ""
    assert not stage.host.open_jobs
