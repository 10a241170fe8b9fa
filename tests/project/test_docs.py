"""The code in the documents runs."""

import asyncio
import importlib
import os
import pkgutil
import re
import subprocess
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from pathlib import Path

import pytest
from pipecat.bus.messages import BusJobRequestMessage, BusJobResponseMessage
from pipecat.frames.frames import LLMMessagesAppendFrame, TTSSpeakFrame
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.services.llm_service import FunctionCallParams, LLMService
from pipecat.services.openai.llm import OpenAILLMService
from pipecat.workers.base_worker import BaseWorker as PipecatBaseWorker
from pipecat.workers.runner import WorkerRunner
from support.client import Client
from support.llm_workers import NewLLM, new_llm
from support.snippets import (
    ROOT,
    Program,
    anchors,
    docstring_examples,
    load,
    play,
    programs,
    run,
    snippets,
)
from support.workers import until

import pipecat_jobs
import pipecat_jobs.testing
from pipecat_jobs import JobEvent
from pipecat_jobs.bus.redis import EmbeddedRedis
from pipecat_jobs.bus.routed import sees_all
from pipecat_jobs.testing import JobHarness, ScriptedLLMServer, ToolCall

__all__ = ["new_llm"]

EXAMPLES = [
    (f"{module.__name__}.{name}", code)
    for info in pkgutil.walk_packages(pipecat_jobs.__path__, "pipecat_jobs.")
    for module in [importlib.import_module(info.name)]
    for name, code in docstring_examples(module)
]
EXAMPLES_OF_TESTS = [each for each in EXAMPLES if each[0].startswith("pipecat_jobs.testing")]
EXAMPLES_OF_BOTS = [each for each in EXAMPLES if each not in EXAMPLES_OF_TESTS]

PAGES = [
    "README.md",
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")),
]

#: Their programs have several files, run in several processes, or are tests for pytest.
WITH_TESTS_OF_THEIR_OWN = (
    "README.md",
    "docs/how-to/distributed.md",
    "docs/how-to/local-llm.md",
    "docs/how-to/testing.md",
    "docs/how-to/voice-bot.md",
    "docs/tutorial/first-bot.md",
)


class Worker(pipecat_jobs.BaseWorker):
    """Does every job that a snippet asks for."""

    @pipecat_jobs.job(name="write")
    async def write(self, message: BusJobRequestMessage):
        for word in ("all ", "about ", "it"):
            yield {"text": word}

    @pipecat_jobs.job(name="research")
    async def research(self, message: BusJobRequestMessage) -> dict:
        return {"answer": message.payload}

    async def on_job_request(self, message: BusJobRequestMessage) -> None:
        await self.send_job_response(message.job_id, {"question": message.payload})


@pytest.fixture
async def names(job_harness: JobHarness) -> dict[str, object]:
    """The names that a snippet may use: a worker as ``self``, and other workers to ask."""
    host = pipecat_jobs.BaseWorker("host")
    others = ("worker", "researcher", "writer", "wiki", "news", "advocate", "critic")
    await job_harness.start(host, *(Worker(name) for name in others))
    return {
        **{name: getattr(pipecat_jobs, name) for name in pipecat_jobs.__all__},
        **{name: getattr(pipecat_jobs.testing, name) for name in pipecat_jobs.testing.__all__},
        "__name__": "snippet",
        "BusJobResponseMessage": BusJobResponseMessage,
        "FunctionCallParams": FunctionCallParams,
        "LLMContext": LLMContext,
        "LLMMessagesAppendFrame": LLMMessagesAppendFrame,
        "LLMService": LLMService,
        "BusJobRequestMessage": BusJobRequestMessage,
        "OpenAILLMService": OpenAILLMService,
        "WorkerRunner": WorkerRunner,
        "TTSSpeakFrame": TTSSpeakFrame,
        "SomeWorker": type("SomeWorker", (PipecatBaseWorker,), {}),
        "asyncio": asyncio,
        "pytest": pytest,
        "self": host,
        "topic": "AI",
    }


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_existing_files_and_headings(page: str):
    for link in re.findall(r"\]\((?!https?://)([^)]+)\)", (ROOT / page).read_text()):
        file, _, heading = link.partition("#")
        target = (ROOT / page).parent / file if file else ROOT / page
        assert target.exists(), f"{page} links to {link}"
        if heading:
            assert heading in anchors(target), f"{page} links to {link}"


def test_the_home_page_lists_every_page():
    linked = set(re.findall(r"\]\(([\w/-]+\.md)\)", (ROOT / "docs/index.md").read_text()))
    pages = {page.removeprefix("docs/") for page in PAGES} - {"README.md", "index.md"}
    assert linked == {page for page in pages if not page.startswith("reference/")} | {
        "reference/index.md"
    }


@pytest.mark.parametrize("page", PAGES)
def test_every_snippet_in_python_says_whether_it_is_a_program_or_a_part_of_one(page: str):
    fences = [each for each in snippets(page) if each.language == "python"]
    assert [str(each) for each in fences if each.title is None] == []


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(program, id=str(program))
        for page in PAGES
        if page not in WITH_TESTS_OF_THEIR_OWN
        for program in programs(page).values()
    ],
)
async def test_programs_of_the_docs_run_with_their_parts_and_print_what_is_shown(program: Program):
    await play(program)


async def test_the_workers_of_the_answering_page_respond(job_harness: JobHarness):
    names = load("docs/how-to/answering.md", "library.py")
    host = pipecat_jobs.BaseWorker("host")
    workers = [names[name](name) for name in ("Writer", "Printer", "Taxis", "Door")]
    await job_harness.start(host, *workers)

    async with host.job("Writer", name="write", payload={"topic": "tea"}) as j:
        events = [event async for event in j]
    chunks = [event.data["text"] for event in events if event.type == JobEvent.STREAM_DATA]
    assert "".join(chunks) == "all about tea"
    async with host.job("Printer", name="print", payload={"pages": 2}) as j:
        updates = [event.data async for event in j if event.type == JobEvent.UPDATE]
    assert updates == [{"page": 1, "of": 2}, {"page": 2, "of": 2}]
    assert await host.job("Taxis", name="drive", payload={"to": "Oslo"}) == {"at": "Oslo"}

    door = workers[-1]

    async def wait_for_visitor():
        return await host.job("Door", name="wait_for_visitor", timeout=60)

    visit, given_up = (asyncio.create_task(wait_for_visitor()) for _ in range(2))
    await until(lambda: len(door._waiting) == 2)
    given_up.cancel()
    await until(lambda: len(door._waiting) == 1)
    await door.on_bell("Ahab")
    assert await visit == {"visitor": "Ahab"}


async def test_the_workers_of_the_open_jobs_page_find_and_cancel_their_jobs(
    job_harness: JobHarness,
    scripted_llm: ScriptedLLMServer,
    new_llm: NewLLM,
):
    cooked = asyncio.Event()

    class Kitchen(pipecat_jobs.BaseWorker):
        @pipecat_jobs.job
        async def cook(self, dish: str) -> str:
            await cooked.wait()
            return dish

    names = load("docs/how-to/open-jobs.md", "orders.py")
    waiter = names["HeadWaiter"]("waiter")
    talking = names["Receptionist"]("talking", llm=new_llm("You talk."), active=True)
    await job_harness.start(Kitchen("kitchen"), waiter, talking)

    await waiter.take_order(4, "soup")
    await waiter.cancel_order(4)
    await until(lambda: not waiter.open_jobs)

    async def say(text: str) -> None:
        # The turn of hear() would wait for the tool, which runs in the background.
        message = {"role": "user", "content": text}
        await talking.queue_frame(LLMMessagesAppendFrame([message], run_llm=True))

    scripted_llm.reply(
        *(ToolCall("order", {"dish": "fish"}), ToolCall("list_jobs", {})),
        *("It is being cooked.", "Here is your fish."),
    )
    await say("Fish, please.")
    await until(lambda: talking.open_jobs)
    await say("Is it coming?")
    *_, with_the_list = await scripted_llm.wait_for_requests(3)
    assert with_the_list.mentions("kitchen")
    cooked.set()
    await scripted_llm.wait_for_requests(4)
    await talking.flush_pipeline()


@pytest.mark.not_on("pubsub", reason="Pipecat's network buses drop what a steer is attached to")
async def test_the_workers_of_the_steering_page_take_and_refuse_steers(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    names = load("docs/how-to/steering.md", "garage.py")
    owner, painter = names["Owner"]("owner"), names["Painter"]("painter")
    scholar = names["Researcher"]("scholar", llm=new_llm("You research."))
    await job_harness.start(owner, painter, scholar)

    async with owner.job("painter", name="paint", payload={"color": "red"}) as painting:
        gold = await owner.steer(painting.job_id, {"color": "gold"})
        assert gold.reason == "there is no gold left"
        assert (await owner.steer(painting.job_id, {"color": "blue"})).accepted
    assert painting.response == {"color": "blue"}

    scripted_llm.reply("All about tea.")
    found = await owner.job("scholar", name="research", payload={"topic": "tea"})
    assert found == {"found": "All about tea."}


@pytest.mark.not_on("pubsub", reason="Pipecat's network buses drop what an answer needs")
async def test_the_patient_of_the_questions_page_answers_later(job_harness: JobHarness):
    names = load("docs/how-to/questions.md", "booking.py")
    patient = names["Patient"]("patient")
    await job_harness.start(patient, names["Desk"]("desk"))

    async with patient.job("desk", name="book") as j:
        for words in ("the roof", "aisle", "yes"):
            await until(lambda: patient.asked is not None)
            await patient.on_user_said(words)
            patient.asked = None
    assert j.response == {"seat": "aisle"}


@pytest.mark.not_on("pubsub", reason="Pipecat's network buses drop what an answer needs")
async def test_the_user_answers_the_question_of_the_questions_page(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    names = load("docs/how-to/questions.md", "booking.py")
    clerk = names["CarefulClerk"]("clerk", llm=new_llm("You help."), active=True)
    await job_harness.start(clerk, names["Bank"]("bank"))
    await clerk.flush_pipeline()

    async def say(words: str) -> None:
        message = {"role": "user", "content": words}
        await clerk.queue_frame(LLMMessagesAppendFrame([message], run_llm=True))

    scripted_llm.reply(ToolCall("pay", {"euros": 40}), "Shall I?")
    await say("Pay 40 euros.")
    *_, asked = await scripted_llm.wait_for_requests(2)
    assert asked.mentions("Charge 40 euros?")
    (name,) = [
        tool["function"]["name"]
        for tool in asked.body["tools"]
        if tool["function"]["name"].startswith("answer_question_")
    ]
    scripted_llm.reply(ToolCall(name, {"answer": True}), "One moment.", "It is paid.")
    await say("Yes.")
    *_, last = await scripted_llm.wait_for_requests(5)
    assert last.mentions("paid 40 euros")
    await clerk.flush_pipeline()

    free = names["Bank"].pay.request(euros=0)
    assert await clerk.job("bank", free, timeout=60) == "paid 0 euros"


@pytest.mark.not_on("pubsub", reason="Pipecat's network buses drop what a steer is attached to")
async def test_the_workers_of_the_page_for_users_of_livekit_do_what_it_says(
    job_harness: JobHarness,
    scripted_llm: ScriptedLLMServer,
    new_llm: NewLLM,
    capsys: pytest.CaptureFixture[str],
):
    names = load("docs/coming-from/livekit.md", "taxis.py")
    host = names["Host"]("guide", llm=new_llm("You guide."), active=True)
    clerk = names["Clerk"]("clerk", llm=new_llm("You book."), active=True)
    waiter = names["Waiter"]("waiter", llm=new_llm("You serve."), active=True)
    await job_harness.start(host, clerk, waiter, names["Taxis"]("taxis"), names["Desk"]("desk"))
    for worker, call in (
        (host, ToolCall("order_taxi", {"street": "Elm Street"})),
        (clerk, ToolCall("book", {"city": "Rome"})),
    ):
        await worker.flush_pipeline()
        already = len(scripted_llm.requests)
        scripted_llm.reply(call, "Well.")
        message = {"role": "user", "content": "Do it, please."}
        await worker.queue_frame(LLMMessagesAppendFrame([message], run_llm=True))
        *_, last = await scripted_llm.wait_for_requests(already + 2)
        assert last.mentions("Elm Street" if worker is host else "Aisle or window?")
        await worker.flush_pipeline()

    scripted_llm.reply("The table is free.")
    await waiter.tell()
    assert capsys.readouterr().out == "said\n"
    # The question is still open.
    await job_harness.end(clerk)


async def test_the_workers_of_the_reports_page_report(
    job_harness: JobHarness,
    scripted_llm: ScriptedLLMServer,
    new_llm: NewLLM,
    capsys: pytest.CaptureFixture[str],
):
    names = load("docs/how-to/reports.md", "waiter.py")
    parts = (names["Waiter"], names["HeadWaiter"], names["Bank"])
    waiter = type("Waiter", parts, {})("waiter", llm=new_llm("You serve."), active=True)
    names["follow"](waiter)
    comparing = names["Comparer"]("comparing", llm=new_llm("You compare."), active=True)
    asking = names["Host"]("asking", llm=new_llm("You ask."), active=True)
    await job_harness.start(waiter, comparing, asking, Worker("wiki"), Worker("news"))

    waiter.reading_pin = True
    assert waiter.holds_reports()
    waiter.reading_pin = False
    scripted_llm.reply("Order 7 is ready.")
    await waiter.announce(7)
    await until(lambda: " said\n" in capsys.readouterr().out)

    scripted_llm.reply(ToolCall("compare", {"topic": "tea"}), "Both like it.")
    message = {"role": "user", "content": "What do they say about tea?"}
    await comparing.queue_frame(LLMMessagesAppendFrame([message], run_llm=True))
    *_, last = await scripted_llm.wait_for_requests(3)
    assert last.mentions("compared")

    answered = asyncio.Event()
    confirming = asyncio.create_task(asking.confirm("Aisle or window?", answered))
    await until(lambda: asking.floor.holder is pipecat_jobs.FloorHolder.CODE)
    answered.set()
    await confirming
    await asking.play_music()


async def test_the_waiter_of_the_client_page_shows_a_job_to_the_client(
    job_harness: JobHarness,
    scripted_llm: ScriptedLLMServer,
    new_llm: NewLLM,
):
    class Kitchen(pipecat_jobs.BaseWorker):
        @pipecat_jobs.job
        async def cook(self, message: BusJobRequestMessage) -> dict[str, object]:
            await self.send_job_update(message.job_id, {"percent": 50, "cook": "Ann"})
            return {"dish": message.payload["dish"]}

    client = Client()
    names = load("docs/how-to/client.md", "restaurant.py")
    names["ClientJobs"] = names["Cards"]
    await job_harness.start(Kitchen("kitchen"))
    await names["serve"](client, new_llm("You serve."), job_harness.runner)
    await client.connect()

    waiter = job_harness.runner.get_worker("waiter")
    scripted_llm.reply(ToolCall("order", {"dish": "fish"}), "Here it is.")
    assert await waiter.hear("The fish, please.") == "Here it is."
    await client.wait_until(lambda: ("closed",) in client.cards())
    assert client.cards()[1:3] == [
        ("update", "kitchen", {"percent": 50}),
        ("completed", "kitchen", "completed", None),
    ]


def test_tests_of_the_testing_page_pass(tmp_path: Path):
    plugins, tests = programs("docs/how-to/testing.md").values()
    code = [each.code for each in (tests.source, *tests.below)]
    (tmp_path / "conftest.py").write_text(plugins.source.code)
    (tmp_path / "test_page.py").write_text("\n".join(code))
    options = ["asyncio_mode=auto", "asyncio_default_fixture_loop_scope=function"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
        + [part for option in options for part in ("-o", option)],
        cwd=tmp_path,
        env={key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stdout
    assert f"{len(code)} passed" in done.stdout


async def run_example(code: str, names: dict[str, object]) -> None:
    await run(code, names)
    if "llm" in names:
        # Pipecat has no public way to close a service that was never in a pipeline.
        await names["llm"]._client.close()


@pytest.mark.parametrize(
    ("where", "code"), [pytest.param(*example, id=example[0]) for example in EXAMPLES_OF_BOTS]
)
async def test_examples_in_docstrings_run(where: str, code: str, names: dict[str, object]):
    await run_example(code, names)


@pytest.mark.not_on(
    "redis",
    "pubsub",
    reason="they check that no task is left, and such a bus begins tasks when it needs them",
)
@pytest.mark.parametrize(
    ("where", "code"), [pytest.param(*example, id=example[0]) for example in EXAMPLES_OF_TESTS]
)
async def test_examples_of_the_testing_kit_run(where: str, code: str, names: dict[str, object]):
    await run_example(code, names)


@pytest.mark.parametrize(
    ("worker", "name"),
    [("Debater", "argue"), ("Bot", "argue"), ("Librarian", "recommend"), ("DebateWorker", None)],
)
async def test_the_workers_of_the_llm_page_respond_with_the_text_of_the_llm(
    worker: str,
    name: str | None,
    job_harness: JobHarness,
    scripted_llm: ScriptedLLMServer,
    new_llm: NewLLM,
):
    names = load("docs/how-to/llm.md", "debate.py")
    scripted_llm.on("Topic: voice", "Talk is cheap.")
    host = pipecat_jobs.BaseWorker("host")
    await job_harness.start(host, names[worker]("debater", llm=new_llm("You argue.")))

    response = await host.job("debater", name=name, payload={"topic": "voice"})

    assert response["text"] == "Talk is cheap."


async def test_the_chat_of_the_llm_page_prints_what_the_bot_says(
    job_harness: JobHarness,
    scripted_llm: ScriptedLLMServer,
    new_llm: NewLLM,
    capsys: pytest.CaptureFixture[str],
):
    scripted_llm.on("Moby Dick", "On shelf 7.")
    bot = pipecat_jobs.LLMContextWorker("bot", llm=new_llm("You know books."))
    await job_harness.start(bot)

    await load("docs/how-to/llm.md", "debate.py")["chat"](bot)

    assert capsys.readouterr().out == "On shelf 7. []\n"


def test_the_worker_of_the_bus_page_does_not_get_the_messages_for_others():
    assert not sees_all(load("docs/how-to/bus.md", "crowd.py")["Quiet"]("quiet"))


async def test_the_parts_of_the_distributed_page_run(
    job_harness: JobHarness, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1")
    page = "docs/how-to/distributed.md"
    load(page, "redis_bus.py")
    names = load(page, "worker.py")
    host, tutor = pipecat_jobs.BaseWorker("host"), names["Tutor"]("tutor")
    await job_harness.start(host, names["Cashier"]("cashier"), tutor)
    assert await host.job("cashier", name="receipt", timeout=60) == {"again": False}
    assert await names["ask"](host, "Ann") == {"text": "As I said before ..."}


async def test_the_two_programs_of_the_distributed_page_run(tmp_path: Path):
    for name, program in programs("docs/how-to/distributed.md").items():
        (tmp_path / name).write_text(program.source.code)
    async with EmbeddedRedis(start_timeout=100.0) as server:

        async def start(program: str) -> Process:
            return await asyncio.create_subprocess_exec(
                *(sys.executable, program),
                cwd=tmp_path,
                env=os.environ | {"REDIS_URL": server.url},
                stdout=PIPE,
                stderr=DEVNULL,
            )

        session, worker = await start("session.py"), await start("worker.py")
        said, _ = await session.communicate()
        assert said.decode() == f"All about tea, from process {worker.pid}.\n"
        worker.terminate()
        assert await worker.wait() == 0


def test_each_row_of_the_failure_table_is_a_test():
    tests = {
        name
        for path in (ROOT / "tests/bus").rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    table = (ROOT / "docs/how-to/distributed.md").read_text().split("## When something fails")[1]
    rows = re.findall(r"`(test_\w+)`", table)
    assert len(rows) > 25
    assert set(rows) <= tests
    of_processes = re.findall(
        r"^async def (test_\w+)",
        (ROOT / "tests/bus/redis/test_processes.py").read_text(),
        re.MULTILINE,
    )
    assert set(of_processes) <= set(rows)
