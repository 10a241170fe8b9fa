"""The cost of whole debates when many sessions share one process."""

import asyncio
import multiprocessing
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from multiprocessing.connection import Connection

from pipecat.frames.frames import InterruptionFrame

from benchmarks.benchmark import Benchmark, Figure, Spread
from benchmarks.child import fresh_process, log_errors_only, resident
from benchmarks.debate import MODERATOR, OURS, PIPECATS, Debate, JobLayer
from pipecat_jobs.testing import LLMRequest, ScriptedLLMServer, Text, ToolCall

#: How many sessions run at once.
_COUNTS = (1, 10, 100)

#: How many tokens each debater sends.
_TOKENS = 10
_SUMMARY = Text("They do not agree.")

#: How many debates in every session are measured, one after the other.
_DEBATES = 2
#: The least number of interruptions that are measured.
_INTERRUPTIONS = 10
#: Seconds between two interruptions.
_APART = 0.05

#: Seconds that one step may take before the benchmark fails.
_MOST_PER_STEP = 120

#: The layers that are compared, by name, because a name can be sent to another process.
_LAYERS = {layer.name: layer for layer in (OURS, PIPECATS)}

#: All samples, by quantity and unit.
_Found = dict[tuple[str, str], list[float]]


def _make_argument(count: int) -> Text:
    """Make the text of a debater, so slow that all sessions leave the processor half idle."""
    return Text(" ".join(["regulation"] * _TOKENS), pace=0.01 * max(count, 10))


def _answer_moderator(request: LLMRequest) -> Text | ToolCall:
    if request.messages[-1]["role"] == "tool":
        return _SUMMARY
    return ToolCall("debate", {"topic": "whether AI should be regulated"})


def _provide(pipe: Connection, argument: Text) -> None:
    """Run the scripted provider until the pipe is closed."""

    async def provide() -> None:
        async with ScriptedLLMServer() as server:
            server.on(MODERATOR, _answer_moderator)
            server.on(lambda request: request.mentions("You argue"), argument)
            pipe.send(server.base_url)
            await asyncio.to_thread(pipe.poll, None)

    log_errors_only()
    asyncio.run(provide())


@asynccontextmanager
async def _provider(argument: Text) -> AsyncIterator[str]:
    """Run a provider in a process of its own, and yield its base URL."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_provide, args=(theirs, argument), daemon=True)
    process.start()
    try:
        yield await asyncio.to_thread(ours.recv)
    finally:
        ours.close()
        theirs.close()
        process.terminate()
        await asyncio.to_thread(process.join)


async def _hold_debates(debates: Sequence[Debate]) -> None:
    """Hold one whole debate in each session, all at once."""
    async with asyncio.timeout(_MOST_PER_STEP):
        await asyncio.gather(*(debate.open() for debate in debates))
        await asyncio.gather(*(debate.summed_up.wait() for debate in debates))


class _Streams:
    """Observes the streams of the three debaters of one session."""

    def __init__(self, debate: Debate):
        self._loop = asyncio.get_running_loop()
        self.began = asyncio.Event()
        self.closed: asyncio.Future[float] = self._loop.create_future()
        self._not_begun = self._not_closed = len(debate.llms)
        for llm in debate.llms.values():
            llm.on_stream_began, llm.on_stream_closed = self._note_began, self._note_closed

    def _note_began(self) -> None:
        self._not_begun -= 1
        if not self._not_begun:
            self.began.set()

    def _note_closed(self) -> None:
        self._not_closed -= 1
        if not self._not_closed and not self.closed.done():
            self.closed.set_result(self._loop.time())


async def _interrupt_each(debates: Sequence[Debate]) -> list[float]:
    """Interrupt the sessions one after the other, and return the milliseconds that each took."""
    streams = [_Streams(debate) for debate in debates]
    loop, taken = asyncio.get_running_loop(), list[float]()
    async with asyncio.timeout(_MOST_PER_STEP):
        await asyncio.gather(*(debate.open() for debate in debates))
        await asyncio.gather(*(each.began.wait() for each in streams))
        interrupted: list[float] = []
        for debate in debates:
            interrupted.append(loop.time())
            await debate.moderator.queue_frame(InterruptionFrame())
            # The next interruption may come before this one is handled.
            await asyncio.sleep(_APART)
        for began, each in zip(interrupted, streams, strict=True):
            taken.append(1000 * (await each.closed - began))
    return taken


async def _measure(layer_name: str, count: int) -> _Found:
    layer = _LAYERS[layer_name]
    async with _provider(_make_argument(count)) as base_url, AsyncExitStack() as sessions:
        # The first session loads what all sessions share: modules, and connections of the client.
        first = Debate(layer, base_url)
        await sessions.enter_async_context(first.running())
        await _hold_debates([first])
        before = resident()
        debates = [Debate(layer, base_url) for _ in range(count)]
        for debate in debates:
            await sessions.enter_async_context(debate.running())
        await _hold_debates(debates)
        memory = (resident() - before) / count
        cpu: list[float] = []
        for _ in range(_DEBATES):
            began = time.process_time()
            await _hold_debates(debates)
            cpu.append(1000 * (time.process_time() - began) / count)
        interruptions: list[float] = []
        while len(interruptions) < _INTERRUPTIONS:
            interruptions += await _interrupt_each(debates)
    at_once = f"{count} at once" if count > 1 else "1 alone"
    return {
        (f"CPU of a debate, {at_once}", "ms"): cpu,
        (f"memory of a session, {at_once}", "MB"): [memory],
        (f"interrupted until closed, {at_once}", "ms"): interruptions,
    }


def _run_measure(layer: JobLayer, count: int) -> _Found:
    return asyncio.run(_measure(layer.name, count))


async def _run(rounds: int) -> list[Figure]:
    found: dict[tuple[str, str, str], list[float]] = {}
    for _ in range(rounds):
        for count in _COUNTS:
            for layer in _LAYERS.values():
                with fresh_process() as executor:
                    measure = partial(_run_measure, layer, count)
                    loop = asyncio.get_running_loop()
                    measured = await loop.run_in_executor(executor, measure)
                for (quantity, unit), samples in measured.items():
                    found.setdefault((quantity, layer.name, unit), []).extend(samples)
    return [
        Figure(quantity, subject, unit, Spread.of(samples))
        for (quantity, subject, unit), samples in sorted(
            found.items(), key=lambda item: item[0][0].partition(",")[0]
        )
    ]


SESSIONS = Benchmark(
    name="sessions",
    title="whole debates, many sessions in one process",
    method=(
        "A session is a moderator and three debaters on a runner and a bus of their own. CPU is "
        "the CPU time of the process for one debate in every session at once, from the user's "
        "request to the summary, divided by the number of sessions; the provider runs in another "
        "process. Memory is the growth of resident memory from a process with one session until "
        "every session has held a debate, divided by the number of sessions. For interruptions, "
        "all sessions debate and are interrupted one after the other while the others continue; "
        "the time is from the InterruptionFrame until the last of the three streams of the session "
        f"was closed. Each debater sends {_TOKENS} tokens, one every 0.1 s, and with 100 sessions "
        "one every second; with Pipecat's own jobs, it sends all of them."
    ),
    rounds=1,
    run=_run,
)
