"""The time from an interruption by the user until the debaters' providers stop."""

import asyncio
import random
from dataclasses import dataclass

from pipecat.frames.frames import InterruptionFrame

from benchmarks.benchmark import Benchmark, Figure, Spread
from benchmarks.debate import DEBATERS, MODERATOR, OURS, PIPECATS, Debate, JobLayer, instruction
from benchmarks.llm import LLM
from pipecat_jobs.testing import LLMRequest, ScriptedLLMServer, Text, ToolCall

#: The argument of each debater, which takes one second at fifty tokens per second.
_ARGUMENT = Text(" ".join(["regulation"] * 50), pace=0.02)

#: How many tokens each debater has sent when the user interrupts.
_TOKENS_BEFORE = 3

#: Rounds of ours for each round of Pipecat's own, which lasts until all arguments are complete.
_ROUNDS_PER_PIPECATS = 10

#: Rounds that are not counted, in which connections are opened and modules are imported.
_WARM_UP = 1

#: Seconds that a round may take before the benchmark fails.
_MOST_PER_ROUND = 30


@dataclass(frozen=True)
class _Round:
    """One interruption."""

    #: Milliseconds until the last client had closed its stream.
    closed: float
    #: Milliseconds until the last stream had ended at the provider.
    ended: float
    #: How many tokens the providers sent after the interruption.
    tokens: int
    #: How many of these tokens they sent after the client had closed its stream.
    tokens_after_closed: int


class _Stream:
    """Observes the stream of one debater, beginning before the interruption."""

    def __init__(self, request: LLMRequest, llm: LLM):
        self.request = request
        self.sent_before = len(request.sent)
        self._loop = asyncio.get_running_loop()
        #: The time at which the client closed the stream, and how many tokens were sent until then.
        self.closed: asyncio.Future[tuple[float, int]] = self._loop.create_future()
        llm.on_stream_closed = self._on_closed

    def _on_closed(self) -> None:
        self.closed.set_result((self._loop.time(), len(self.request.sent)))


async def _interrupt(debate: Debate, server: ScriptedLLMServer, moment: float) -> _Round:
    earlier = len(server.requests)
    await debate.open()
    # The first request is of the moderator, whose LLM then calls the tool.
    asked = (await server.wait_for_requests(earlier + 1 + len(DEBATERS)))[earlier + 1 :]
    requests = {name: _find_request(name, asked) for name in DEBATERS}
    for request in requests.values():
        await request.wait_token(_TOKENS_BEFORE)
    await asyncio.sleep(moment)

    streams = [_Stream(request, debate.llms[name]) for name, request in requests.items()]
    interrupted = asyncio.get_running_loop().time()
    await debate.moderator.queue_frame(InterruptionFrame())

    closings = [await stream.closed for stream in streams]
    endings = [await _wait_for_end(stream.request) for stream in streams]
    return _Round(
        closed=1000 * (max(time for time, _ in closings) - interrupted),
        ended=1000 * (max(endings) - interrupted),
        tokens=sum(len(stream.request.sent) - stream.sent_before for stream in streams),
        tokens_after_closed=sum(
            len(stream.request.sent) - sent
            for stream, (_, sent) in zip(streams, closings, strict=True)
        ),
    )


def _find_request(debater: str, requests: list[LLMRequest]) -> LLMRequest:
    return next(request for request in requests if request.mentions(instruction(debater)))


async def _wait_for_end(request: LLMRequest) -> float:
    await request.wait_ended()
    assert request.ended_at is not None
    return request.ended_at


def _figures(layer: JobLayer, rounds: list[_Round]) -> list[Figure]:
    measured = {
        "until the client had closed": ("ms", [round_.closed for round_ in rounds]),
        "until the provider's stream ended": ("ms", [round_.ended for round_ in rounds]),
        "sent after the interruption": ("tokens", [round_.tokens for round_ in rounds]),
        "of these after the client had closed": (
            "tokens",
            [round_.tokens_after_closed for round_ in rounds],
        ),
    }
    return [
        Figure(quantity, layer.name, unit, Spread.of(samples))
        for quantity, (unit, samples) in measured.items()
    ]


async def _run(rounds: int) -> list[Figure]:
    found: dict[JobLayer, list[_Round]] = {OURS: [], PIPECATS: []}
    moments = random.Random(0)
    async with ScriptedLLMServer() as server:
        server.on(MODERATOR, ToolCall("debate", {"topic": "whether AI should be regulated"}))
        server.on(lambda request: request.mentions("You argue"), _ARGUMENT)
        debates = {layer: Debate(layer, server.base_url) for layer in found}
        async with debates[OURS].running(), debates[PIPECATS].running():
            for number in range(-_WARM_UP, rounds):
                due = found if number < 0 or number % _ROUNDS_PER_PIPECATS == 0 else (OURS,)
                for layer in due:
                    # Directly after a token, the next one would always be a whole pace away.
                    moment = moments.uniform(0, _ARGUMENT.pace)
                    async with asyncio.timeout(_MOST_PER_ROUND):
                        measured = await _interrupt(debates[layer], server, moment)
                    if number >= 0:
                        found[layer].append(measured)
    figures = [_figures(layer, measured) for layer, measured in found.items()]
    # The figures of one quantity stand next to each other.
    return [figure for pair in zip(*figures, strict=True) for figure in pair]


INTERRUPTION = Benchmark(
    name="interruption",
    title="three debaters stream their arguments, and the user interrupts",
    method=(
        "Times are from the InterruptionFrame queued into the bot's pipeline until the last of the "
        "three streams was closed; tokens are of all three streams. Each debater would send "
        f"{len(_ARGUMENT.tokens)} tokens, one every {1000 * _ARGUMENT.pace:g} ms, and is "
        f"interrupted after {_TOKENS_BEFORE}, at a random moment between two tokens. Bot, debaters "
        "and the scripted provider share one process and one event loop, so the work of the "
        "provider counts as delay; requests use Pipecat's OpenAILLMService and real HTTP. There is "
        f"one round of Pipecat's own jobs for {_ROUNDS_PER_PIPECATS} rounds of ours, because each "
        "lasts until all text is sent."
    ),
    rounds=100,
    run=_run,
)
