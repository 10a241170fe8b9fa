"""The code in the documents runs."""

import asyncio
import importlib
import os
import pkgutil
import re
import subprocess
import sys
import textwrap
from asyncio.subprocess import DEVNULL, PIPE, Process
from pathlib import Path

import pytest
from pipecat.bus.messages import BusJobRequestMessage, BusJobResponseMessage
from pipecat.frames.frames import LLMMessagesAppendFrame
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.services.llm_service import LLMService
from pipecat.services.openai.llm import OpenAILLMService
from pipecat.workers.base_worker import BaseWorker as PipecatBaseWorker
from pipecat.workers.runner import WorkerRunner
from support.llm_workers import NewLLM, new_llm
from support.snippets import ROOT, blocks, docstring_examples, run

import pipecat_jobs
import pipecat_jobs.testing
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

#: Every command of the README, and the test that runs it.
COMMANDS = {
    "make demo": "`make test` runs the same without a terminal; test_example_debate.py with one",
    "make demo-distributed": "test_example_distributed.py; `make test` runs it without a terminal",
    "pip install .": "`make test-lowest` installs the wheel that it builds",
    "python examples/single_job.py": "test_examples.py",
    "python examples/job_group.py": "test_examples.py",
    "python examples/streaming.py": "test_examples.py",
    "python examples/cancellation.py": "test_examples.py",
    "python examples/job_tool.py": "test_examples.py",
    "make voice": "test_voice_bot.py starts the same",
    ".venv/bin/pipecat eval run evals": "test_evals.py",
    "make bench": "test_benchmarks.py runs the same with small counts",
    "make test": "is what runs this",
}


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
        "LLMContext": LLMContext,
        "LLMMessagesAppendFrame": LLMMessagesAppendFrame,
        "LLMService": LLMService,
        "BusJobRequestMessage": BusJobRequestMessage,
        "OpenAILLMService": OpenAILLMService,
        "WorkerRunner": WorkerRunner,
        "SomeWorker": type("SomeWorker", (PipecatBaseWorker,), {}),
        "asyncio": asyncio,
        "pytest": pytest,
        "self": host,
        "topic": "AI",
    }


async def test_readme_first_snippet_debates(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    names: dict[str, object] = {"__name__": "snippet"}
    await run(blocks("README.md", "python")[0], names)
    debaters = ("advocate", "critic", "analyst")
    for name in debaters:
        scripted_llm.on(f"You are the {name}", f"Says the {name}.")
    scripted_llm.on("You moderate", ToolCall("debate", {"topic": "voice"}), "They differ.")
    moderator = names["Moderator"]("moderator", llm=new_llm("You moderate."))
    workers = [names["Debater"](name, llm=new_llm(f"You are the {name}.")) for name in debaters]
    await job_harness.start(moderator, *workers)

    assert await moderator.llm_turn("Debate voice") == "They differ."
    assert all(scripted_llm.requests[-1].mentions(f"Says the {name}.") for name in debaters)


async def test_readme_program_runs_unchanged(tmp_path: Path, scripted_llm: ScriptedLLMServer):
    program = tmp_path / "bot.py"
    program.write_text(blocks("README.md", "python")[1])
    scripted_llm.reply(ToolCall("find_book", {"title": "Moby Dick"}), "On shelf 7.")
    provider = {"OPENAI_API_KEY": "test", "OPENAI_BASE_URL": scripted_llm.base_url}

    process = await asyncio.create_subprocess_exec(
        sys.executable, program, cwd=tmp_path, env=os.environ | provider, stdout=PIPE, stderr=PIPE
    )
    out, errors = await asyncio.wait_for(process.communicate(), 250)

    assert process.returncode == 0, errors.decode()
    assert out.decode().splitlines()[-1] == "On shelf 7."
    assert scripted_llm.requests[1].mentions("Moby Dick is on shelf 7")


async def test_readme_snippet_without_an_llm_prints_responses_and_missing_workers(
    job_harness: JobHarness,
):
    names: dict[str, object] = {"__name__": "snippet"}
    await run(blocks("README.md", "python")[2], names)
    host, wiki, news = (
        names["Host"]("host"),
        names["Researcher"]("wiki"),
        names["Researcher"]("news"),
    )
    await job_harness.start(host, wiki, news)
    assert set(await host.look_up("voice")) == {"wiki", "news"}
    await job_harness.end(news)
    assert "ended" in (await host.look_up("voice"))["news"]


async def test_readme_mixin_snippet_defines_a_worker():
    names: dict[str, object] = {"__name__": "snippet"}
    await run(blocks("README.md", "python")[3], names)
    assert issubclass(names["Screen"], pipecat_jobs.JobsMixin)


def test_readme_commands_are_all_run_by_the_tests():
    commands = [line for block in blocks("README.md", "sh") for line in block.splitlines()]
    assert sorted(commands) == sorted(COMMANDS)


def test_readme_links_have_existing_targets():
    for document in ("README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))):
        folder = (ROOT / document).parent
        for link in re.findall(r"\]\((?!https?://)([^)#]+)\)", (ROOT / document).read_text()):
            assert (folder / link).exists(), f"{document} links to {link}"


@pytest.mark.parametrize(
    ("page", "number"),
    [
        (page, number)
        for page, first in (("jobs", 0), ("asking", 1), ("many", 1))
        for number in range(first, len(blocks(f"docs/{page}.md", "python")))
    ],
)
async def test_snippets_of_the_pages_about_jobs_run(
    names: dict[str, object], page: str, number: int
):
    await run(blocks(f"docs/{page}.md", "python")[number], names)


@pytest.mark.parametrize(
    ("page", "printed"),
    [
        ("asking", "{'title': 'Moby Dick', 'shelf': 7}\n"),
        ("many", "wiki wiki on tea\nnews news on tea\n"),
    ],
)
async def test_programs_of_the_pages_about_jobs_run(tmp_path: Path, page: str, printed: str):
    program = tmp_path / "bot.py"
    program.write_text(blocks(f"docs/{page}.md", "python")[0])
    process = await asyncio.create_subprocess_exec(
        sys.executable, program, cwd=tmp_path, stdout=PIPE, stderr=PIPE
    )
    out, errors = await asyncio.wait_for(process.communicate(), 250)
    assert process.returncode == 0, errors.decode()
    assert out.decode() == printed


@pytest.mark.parametrize("number", range(len(blocks("docs/retrying.md", "python"))))
async def test_snippets_of_the_retrying_page_run(names: dict[str, object], number: int):
    await run(blocks("docs/retrying.md", "python")[number], names)


async def test_snippets_of_the_typed_page_run(
    names: dict[str, object], job_harness: JobHarness, capsys: pytest.CaptureFixture[str]
):
    program, *snippets = blocks("docs/typed.md", "python")
    await run(program, names)
    await names["main"]()
    assert capsys.readouterr().out == "M0 7\n"
    await job_harness.start(names["Library"]("library"), names["Library"]("archive"))
    for code in snippets:
        await run(code, names)
    printed = capsys.readouterr().out
    assert (
        "'title' is missing; 'titel' is not known; it takes (title: str, floor: int = 0)" in printed
    )
    assert "M2 7" in printed


@pytest.mark.parametrize(
    ("number", "printed"),
    [(0, "settled research host -> researcher"), (1, "research needs a topic")],
)
async def test_snippets_of_the_interceptors_page_run(
    names: dict[str, object], capsys: pytest.CaptureFixture[str], number: int, printed: str
):
    await run(blocks("docs/interceptors.md", "python")[number], names)
    if "LogJobs" in names:
        names["self"].add_job_interceptor(names["LogJobs"]())
        async with names["self"].job("researcher", name="research"):
            pass
    assert printed in capsys.readouterr().out


async def test_snippets_of_the_keys_page_run(names: dict[str, object]):
    fleet, asking = blocks("docs/keys.md", "python")
    await run(fleet + asking, names)
    fly, repair, host = names["fly"], names["repair"], names["self"]
    await host.add_workers(names["Fleet"]("fleet"))
    # Requests that wait for a worker to be ready are sent in any order.
    assert await fly(host, 1, "Moon") == "arrived at Moon"
    older = asyncio.create_task(fly(host, 7, "Mars"))
    first = asyncio.create_task(repair(host, 7, "engine"))
    # Requests of one requester arrive in order.
    await asyncio.sleep(0)
    newer, second = await asyncio.gather(fly(host, 7, "Venus"), repair(host, 7, "engine"))
    assert (await older, newer) == ("changed its course", "arrived at Venus")
    assert await first == "repaired engine"
    assert re.fullmatch(r"job \S+ repairs it already", second)


def test_tests_of_the_testing_page_pass(tmp_path: Path):
    plugins, *tests = blocks("docs/testing.md", "python")
    (tmp_path / "conftest.py").write_text(plugins)
    imports = """
import asyncio
import pytest
from pipecat.bus import BusJobResponseMessage
from pipecat.frames.frames import LLMMessagesAppendFrame
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.services.llm_service import LLMService
from pipecat.services.openai.llm import OpenAILLMService
from pipecat_jobs import BaseWorker, JobTimeoutError, LLMContextWorker, job, tool
from pipecat_jobs.testing import JobHarness, Text, ToolCall, run_virtual
"""
    researcher = blocks("docs/jobs.md", "python")[0]
    (tmp_path / "test_page.py").write_text("\n".join([imports, researcher, *tests]))
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
    assert f"{len(tests)} passed" in done.stdout


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
    ("number", "worker", "name"),
    [(0, "Debater", "argue"), (1, "Bot", "argue"), (3, "DebateWorker", None)],
)
async def test_llm_snippets_respond_with_the_text_of_the_llm(
    number: int,
    worker: str,
    name: str | None,
    names: dict[str, object],
    job_harness: JobHarness,
    scripted_llm: ScriptedLLMServer,
    new_llm: NewLLM,
):
    scripted_llm.on("Topic: voice", "Talk is cheap.")
    await run(blocks("docs/llm.md", "python")[number], names)
    await job_harness.start(names[worker]("debater", llm=new_llm("You argue.")))

    async with names["self"].job("debater", name=name, payload={"topic": "voice"}) as j:
        pass

    assert j.response["text"] == "Talk is cheap."


async def test_the_llm_snippet_prints_what_the_bot_says(
    names: dict[str, object],
    job_harness: JobHarness,
    scripted_llm: ScriptedLLMServer,
    new_llm: NewLLM,
    capsys: pytest.CaptureFixture[str],
):
    scripted_llm.on("Moby Dick", "On shelf 7.")
    await run(blocks("docs/llm.md", "python")[2], names)
    bot = pipecat_jobs.LLMContextWorker("bot", llm=new_llm("You know books."))
    await job_harness.start(bot)

    await names["chat"](bot)

    assert capsys.readouterr().out == "On shelf 7. []\n"


async def test_bus_snippets_make_a_runner_and_a_quiet_worker(names: dict[str, object]):
    for code in blocks("docs/bus.md", "python"):
        await run(f"async def make():\n{textwrap.indent(code, '    ')}    return locals()\n", names)
        names |= await names["make"]()
    assert isinstance(names["runner"], WorkerRunner)
    assert not sees_all(names["Quiet"]("quiet"))


async def test_snippets_of_the_distributed_page_run(
    names: dict[str, object], monkeypatch: pytest.MonkeyPatch, job_harness: JobHarness
):
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1")
    _, _, *snippets = blocks("docs/distributed.md", "python")
    for code in snippets:
        await run(code, names)
    await job_harness.start(names["Cashier"]("cashier"))
    async with names["self"].job("cashier", name="receipt", timeout=5) as j:
        pass
    assert j.response == {"again": False}


async def test_the_two_programs_of_the_distributed_page_run(tmp_path: Path):
    for code in blocks("docs/distributed.md", "python")[:2]:
        (tmp_path / code.partition("\n")[0].removeprefix("# ")).write_text(code)
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
    table = (ROOT / "docs/distributed.md").read_text().split("## When something fails")[1]
    rows = re.findall(r"`(test_\w+)`", table)
    assert len(rows) > 25
    assert set(rows) <= tests
    of_processes = re.findall(
        r"^async def (test_\w+)",
        (ROOT / "tests/bus/redis/test_processes.py").read_text(),
        re.MULTILINE,
    )
    assert set(of_processes) <= set(rows)
