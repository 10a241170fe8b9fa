"""The bot's speech while a tool waits for its jobs."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from itertools import cycle

from loguru import logger
from pipecat.frames.frames import TTSSpeakFrame
from pipecat.services.llm_service import FunctionCallParams

from pipecat_jobs._llm.context_value import to_encodable
from pipecat_jobs._llm.watch import watch
from pipecat_jobs._protocol.tasks import RunningTask, log_raised
from pipecat_jobs.conversation.floor import FloorHolder
from pipecat_jobs.tools.options import JobToolOptions
from pipecat_jobs.tools.progress import JobToolProgress


@asynccontextmanager
async def speak_meanwhile(
    params: FunctionCallParams,
    options: JobToolOptions,
    progress: Callable[[], JobToolProgress],
) -> AsyncGenerator[None, None]:
    """Have the bot speak in long silences, until the block is left."""
    if options.say_after is None:
        yield
        return
    worker = params.pipeline_worker
    speaking = _speak(params, options, options.say_after, progress)
    task: asyncio.Task[None] = worker.create_task(speaking, f"{params.function_name}_say")
    try:
        yield
    finally:
        await worker.cancel_task(task)


async def _speak(
    params: FunctionCallParams,
    options: JobToolOptions,
    say_after: float,
    progress: Callable[[], JobToolProgress],
) -> None:
    floor, clock = watch(params.llm).floor, asyncio.get_running_loop().time
    say = options.say
    texts = cycle(()) if callable(say) else cycle((say,) if isinstance(say, str) else say)
    silence: float | None = say_after
    while silence is not None:
        await floor.until_free_but_for((FloorHolder.TOOL,), silence, since=clock())
        if callable(say):
            text = _make_text(params.function_name, say, progress())
        else:
            text = to_encodable(next(texts))
        if text:
            # Pushed by the LLM: a worker holds back frames that are queued while a tool runs.
            await params.llm.push_frame(TTSSpeakFrame(text, append_to_context=False))
        silence = options.say_every


def _make_text(
    tool_name: str, say: Callable[[JobToolProgress], str | None], progress: JobToolProgress
) -> str | None:
    task = RunningTask()
    try:
        text = say(progress)
    except BaseException as error:
        task.survive(error)
        log_raised(
            f"say of tool {tool_name} raised {type(error).__name__}; the bot stays silent", error
        )
        return None
    if text is not None and not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        logger.error(
            f"say of tool {tool_name} returned {text!r}; the bot stays silent. Return a str or None"
        )
        return None
    return None if text is None else to_encodable(text)
