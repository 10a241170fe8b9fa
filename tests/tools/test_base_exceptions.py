"""A call has its result after any exception: a Rust panic, ``sys.exit()``."""

import asyncio
import gc
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from pipecat.services.llm_service import FunctionCallParams
from support.tools_stage import Colleague, NewLLM, calls_debate, new_llm, raise_stage, tool_results
from support.tools_talks import FlowTalk, calls_flow_debate

from pipecat_jobs import LLMContextWorker, job_tool, tool, tool_call
from pipecat_jobs._protocol.tasks import RunningTask
from pipecat_jobs.testing import JobHarness, ScriptedLLMServer
from pipecat_jobs.testing.fixtures import LogRecord

__all__ = ["new_llm"]


class PanicError(BaseException):
    """PyO3 raises such an exception when Rust code panics."""


RAISED: list[BaseException] = [
    PanicError("index out of bounds"),
    BaseExceptionGroup("several", [PanicError("index out of bounds")]),
    GeneratorExit(),
    SystemExit(1),
    # This is raised last, as by an awaited call that is cancelled.
    asyncio.CancelledError(),
]
SAYS: dict[str, Any] = {"text": "critic says"}


def raises(error: BaseException) -> Callable[..., Any]:
    def broken(*_: object) -> Any:
        raise error

    return broken


def raises_later(error: BaseException) -> Callable[..., Any]:
    async def broken(*_: object) -> Any:
        await asyncio.sleep(0)
        raise error

    return broken


def assert_logged(log: list[LogRecord], where: str, error: BaseException) -> None:
    (record,) = [r for r in log if r.message.startswith(where)]
    assert record.level == ("CRITICAL" if isinstance(error, SystemExit) else "ERROR")
    assert type(error).__name__ in record.message
    assert record.exception is not None


def in_function(error: BaseException) -> type[LLMContextWorker]:
    class Moderator(LLMContextWorker):
        @job_tool("critic", job="argue")
        async def debate(self, topic: str):
            """Analyze a topic."""
            await asyncio.sleep(0)
            raise error

    return Moderator


def in_block(error: BaseException) -> type[LLMContextWorker]:
    class Moderator(LLMContextWorker):
        @tool
        async def debate(self, params: FunctionCallParams, topic: str):
            """Analyze a topic."""
            async with tool_call(params):
                await asyncio.sleep(0)
                raise error

    return Moderator


def in_block_of_a_job(error: BaseException) -> type[LLMContextWorker]:
    class Moderator(LLMContextWorker):
        @tool
        async def debate(self, params: FunctionCallParams, topic: str):
            """Analyze a topic."""
            async with tool_call(params) as call, call.job("critic", name="argue", timeout=30):
                raise error

    return Moderator


@pytest.mark.parametrize("error", RAISED, ids=repr)
@pytest.mark.parametrize("place", [in_function, in_block, in_block_of_a_job])
async def test_a_call_is_settled_as_an_error_after_any_exception(
    job_harness: JobHarness,
    scripted_llm: ScriptedLLMServer,
    new_llm: NewLLM,
    job_log: list[LogRecord],
    place: Callable[[BaseException], type[LLMContextWorker]],
    error: BaseException,
):
    calls_debate(scripted_llm)
    worker = place(error)("moderator", llm=new_llm(), active=True)
    stage = await raise_stage(job_harness, worker, Colleague("critic"))
    await stage.say()

    _, second = await scripted_llm.wait_for_requests(2)
    await worker.flush_pipeline()
    (result,) = tool_results(second)
    assert list(result) == ["error"]
    assert type(error).__name__ in result["error"]
    assert len(stage.settled) == 1
    assert_logged(job_log, "tool debate raised", error)


@pytest.mark.parametrize("error", RAISED[:-1], ids=repr)
async def test_an_exception_after_the_result_is_logged(
    job_harness: JobHarness,
    scripted_llm: ScriptedLLMServer,
    new_llm: NewLLM,
    job_log: list[LogRecord],
    error: BaseException,
):
    class Moderator(LLMContextWorker):
        @tool
        async def debate(self, params: FunctionCallParams, topic: str):
            """Analyze a topic."""
            async with tool_call(params) as call:
                await call.finish("done")
                raise error

    calls_debate(scripted_llm)
    worker = Moderator("moderator", llm=new_llm(), active=True)
    stage = await raise_stage(job_harness, worker)
    await stage.say()

    await scripted_llm.wait_for_requests(2)
    await worker.flush_pipeline()
    assert stage.results == ["done"]
    assert_logged(job_log, "tool debate raised", error)


@pytest.mark.parametrize("error", RAISED, ids=repr)
@pytest.mark.parametrize("render", [raises, raises_later])
async def test_a_render_that_raises_is_replaced_by_the_plain_result(
    job_harness: JobHarness,
    scripted_llm: ScriptedLLMServer,
    new_llm: NewLLM,
    job_log: list[LogRecord],
    render: Callable[[BaseException], Any],
    error: BaseException,
):
    class Moderator(LLMContextWorker):
        @job_tool("critic", job="argue", render=render(error))
        async def debate(self, topic: str):
            """Analyze a topic."""
            return {"topic": topic}

    calls_debate(scripted_llm)
    worker = Moderator("moderator", llm=new_llm(), active=True)
    stage = await raise_stage(job_harness, worker, Colleague("critic"))
    await stage.say()

    _, second = await scripted_llm.wait_for_requests(2)
    await worker.flush_pipeline()
    assert tool_results(second) == [SAYS]
    assert_logged(job_log, "render ", error)


@pytest.mark.parametrize("error", RAISED, ids=repr)
async def test_a_say_that_raises_says_nothing(
    job_harness: JobHarness,
    scripted_llm: ScriptedLLMServer,
    new_llm: NewLLM,
    job_log: list[LogRecord],
    error: BaseException,
):
    asked = asyncio.Event()

    def say(_: object) -> str:
        asked.set()
        raise error

    class Moderator(LLMContextWorker):
        @job_tool("critic", job="argue", say_after=0.01, say=say)
        async def debate(self, topic: str):
            """Analyze a topic."""
            return {"topic": topic}

    calls_debate(scripted_llm)
    critic = Colleague("critic", holds=True)
    worker = Moderator("moderator", llm=new_llm(), active=True)
    stage = await raise_stage(job_harness, worker, critic)
    await stage.say()
    await asked.wait()
    critic.release.set()

    _, second = await scripted_llm.wait_for_requests(2)
    await worker.flush_pipeline()
    assert tool_results(second) == [SAYS]
    assert stage.spoken == []
    assert_logged(job_log, "say of tool debate", error)


@pytest.mark.parametrize("error", RAISED, ids=repr)
async def test_a_call_of_a_flow_is_settled_as_an_error_after_any_exception(
    job_harness: JobHarness,
    scripted_llm: ScriptedLLMServer,
    new_llm: NewLLM,
    job_log: list[LogRecord],
    error: BaseException,
):
    @job_tool("critic", job="argue")
    async def flow_debate(flow_manager, topic: str):
        """Analyze a topic."""
        raise error

    calls_flow_debate(scripted_llm)
    talk = FlowTalk(new_llm(), flow_debate)
    await job_harness.start(talk.worker)
    await talk.begin()

    _, second = await scripted_llm.wait_for_requests(2)
    (result,) = tool_results(second)
    assert type(error).__name__ in result["error"]
    assert_logged(job_log, "tool flow_debate raised", error)
    await talk.worker.flush_pipeline()


@pytest.mark.slow
def test_ctrl_c_within_a_tool_ends_the_process():
    code = """
import asyncio
from pipecat_jobs import LLMContextWorker, job_tool
from pipecat_jobs.testing import JobHarness, ScriptedLLMServer
from support.tools_stage import calls_debate, raise_stage, scripted_service


class Moderator(LLMContextWorker):
    @job_tool("critic")
    async def debate(self, topic: str):
        '''Analyze a topic.'''
        raise KeyboardInterrupt


async def main():
    async with ScriptedLLMServer() as server, JobHarness(timeout=20) as harness:
        calls_debate(server)
        worker = Moderator("moderator", llm=scripted_service(server), active=True)
        stage = await raise_stage(harness, worker)
        await stage.say()
        await asyncio.Event().wait()


try:
    asyncio.run(main())
except KeyboardInterrupt:
    print("ended by Ctrl-C")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd="tests", timeout=240
    )
    assert done.stdout.endswith("ended by Ctrl-C\n"), done.stderr


async def test_a_coroutine_that_is_dropped_within_a_tool_logs_nothing():
    unraisable: list[Any] = []
    hook, sys.unraisablehook = sys.unraisablehook, unraisable.append

    async def guard() -> None:
        task = RunningTask()
        try:
            await asyncio.get_running_loop().create_future()
        except BaseException as error:
            task.survive(error)
            await asyncio.sleep(0)

    try:
        dropped = guard()
        dropped.send(None)
        closing = asyncio.create_task(close_later(dropped))
        await closing
        gc.collect()
    finally:
        sys.unraisablehook = hook
    assert unraisable == []


async def close_later(coroutine: Any) -> None:
    coroutine.close()
