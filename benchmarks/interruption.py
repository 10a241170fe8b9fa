"""How long the debaters' providers go on after the user has interrupted."""

import asyncio
import random
from dataclasses import dataclass

from pipecat.frames.frames import InterruptionFrame

from benchmarks.benchmark import Benchmark, Figure, Spread
from benchmarks.debate import DEBATERS, MODERATOR, OURS, PIPECATS, Debate, JobLayer, instruction
from benchmarks.llm import LLM
from pipecat_jobs.testing import LLMRequest, ScriptedLLMServer, Text, ToolCall

#: What each debater says: a second of it, at fifty tokens a second.
_ARGUMENT = Text(" ".join(["regulation"] * 50), pace=0.02)

#: How many of them each debater has said when the user interrupts.
_TOKENS_BEFORE = 3

#: Rounds of ours for each of Pipecat's own, which lasts until all arguments are over.
_ROUNDS_PER_PIPECATS = 10

#: Rounds that are not counted, in which connections are opened and modules loaded.
_WARM_UP = 1

#: Seconds a round may take before the measurement is given up.
_MOST_PER_ROUND = 30


@dataclass(frozen=True)
class _Round:
    """One interruption.

    Attributes:
        closed: Milliseconds until the last client had closed its stream.
        ended: Milliseconds until the last stream had ended for the provider.
        tokens: How many tokens the providers sent after the interruption.
        tokens_after_closed: How many of them after the client had closed.
    """

    closed: float
    ended: float
    tokens: int
    tokens_after_closed: int


class _Answer:
    """One debater's stream, from the moment before the interruption."""

    def __init__(self, request: LLMRequest, llm: LLM):
        self.request = request
        self.sent_before = len(request.sent)
        self._loop = asyncio.get_running_loop()
        #: When the client closed, and how many tokens had been sent by then.
        self.closed: asyncio.Future[tuple[float, int]] = self._loop.create_future()
        llm.on_stream_closed = self._on_closed

    def _on_closed(self) -> None:
        self.closed.set_result((self._loop.time(), len(self.request.sent)))


async def _interrupt(debate: Debate, server: ScriptedLLMServer, moment: float) -> _Round:
    earlier = len(server.requests)
    await debate.open()
    # The moderator's own request, which calls the tool, comes first.
    asked = (await server.wait_for_requests(earlier + 1 + len(DEBATERS)))[earlier + 1 :]
    requests = {name: _request_of(name, asked) for name in DEBATERS}
    for request in requests.values():
        await request.wait_token(_TOKENS_BEFORE)
    await asyncio.sleep(moment)

    answers = [_Answer(request, debate.llms[name]) for name, request in requests.items()]
    interrupted = asyncio.get_running_loop().time()
    await debate.moderator.queue_frame(InterruptionFrame())

    closings = [await answer.closed for answer in answers]
    endings = [await _end_of(answer.request) for answer in answers]
    return _Round(
        closed=1000 * (max(time for time, _ in closings) - interrupted),
        ended=1000 * (max(endings) - interrupted),
        tokens=sum(len(answer.request.sent) - answer.sent_before for answer in answers),
        tokens_after_closed=sum(
            len(answer.request.sent) - sent
            for answer, (_, sent) in zip(answers, closings, strict=True)
        ),
    )


def _request_of(debater: str, requests: list[LLMRequest]) -> LLMRequest:
    return next(request for request in requests if request.mentions(instruction(debater)))


async def _end_of(request: LLMRequest) -> float:
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
                    # Right after a token, the next one would always be a whole pace away.
                    moment = moments.uniform(0, _ARGUMENT.pace)
                    async with asyncio.timeout(_MOST_PER_ROUND):
                        measured = await _interrupt(debates[layer], server, moment)
                    if number >= 0:
                        found[layer].append(measured)
    figures = [_figures(layer, measured) for layer, measured in found.items()]
    # Side by side, quantity by quantity.
    return [figure for pair in zip(*figures, strict=True) for figure in pair]


INTERRUPTION = Benchmark(
    name="interruption",
    title="three debaters stream their arguments, and the user interrupts",
    method=(
        "Times are from the InterruptionFrame queued into the bot's pipeline until the last of the "
        "three streams was closed; tokens are those of all three. Each debater would say "
        f"{len(_ARGUMENT.tokens)} tokens, one every {1000 * _ARGUMENT.pace:g} ms, and is "
        f"interrupted after {_TOKENS_BEFORE}, at a random moment between two. Bot, debaters and "
        "the scripted provider share one process and one event loop, so the provider's work counts "
        "as delay; requests go through Pipecat's OpenAILLMService and real HTTP. Rounds of "
        f"Pipecat's own jobs are interleaved, one for {_ROUNDS_PER_PIPECATS} of ours, because each "
        "lasts until all text is out."
    ),
    rounds=200,
    run=_run,
)
