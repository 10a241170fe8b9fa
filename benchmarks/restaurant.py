"""Random conversations with a waiter whose kitchen answers late, on virtual time.

The user orders, makes small talk and talks over the bot, as a script says. `Bot` is written once;
`PipecatsBot` and `OurBot` add the tool that asks the kitchen in the background, each in its own
way. The LLM answers from the messages of its context alone.
"""

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from pipecat.bus import AsyncQueueBus
from pipecat.bus.bus import WorkerBus
from pipecat.bus.messages import BusJobRequestMessage
from pipecat.pipeline.base_pipeline import BasePipeline
from pipecat.pipeline.job_context import JobEvent, JobParams
from pipecat.pipeline.job_decorator import job as pipecats_job
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext, LLMContextMessage
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair
from pipecat.services.llm_service import FunctionCallParams, FunctionCallResultProperties
from pipecat.workers.base_worker import BaseWorker as PipecatBaseWorker
from pipecat.workers.llm import LLMWorker as PipecatLLMWorker
from pipecat.workers.llm import tool
from pipecat.workers.runner import WorkerRunner

from pipecat_jobs import BaseWorker, LLMWorker, job, job_tool
from pipecat_jobs.bus import RoutedBus
from pipecat_jobs.testing import ToolCall, ToolCalls
from pipecat_jobs.testing.voice import (
    Answer,
    ScriptedLLM,
    SimulatedUser,
    Speech,
    VoiceOutput,
    turns_of_simulated_user,
)

_SMALL_TALK = "how are you today"
_SMALL_TALK_ANSWER = "I am very well thank you"
_FILLER = "yes of course"

#: Seconds that a word takes: 150 words a minute.
_PACE = 0.4

#: Seconds without the user's voice in which every result that has come can be said.
ENOUGH_SILENCE = 15.0


def telling(number: int) -> str:
    """Return the words in which the bot says that an order is ready."""
    return f"order {number} is ready"


@dataclass(frozen=True)
class Order:
    """How the kitchen cooks one order."""

    #: Seconds until it is ready.
    takes: float
    #: Whether the kitchen sends an update half-way.
    updates: bool


@dataclass(frozen=True)
class Turn:
    """What the user says once."""

    text: str
    #: Seconds of silence before it: of the bot, or only of the user, who then talks over the bot.
    after: float
    waits_for_bot: bool


@dataclass(frozen=True)
class Script:
    """One conversation, before it is played."""

    turns: Sequence[Turn]
    orders: Mapping[int, Order]
    #: Seconds from the last word of the user to the end.
    tail: float


def make_script(seed: int) -> Script:
    """Make a random conversation, the same one for the same seed."""
    chance = random.Random(seed)
    turns: list[Turn] = []
    orders: dict[int, Order] = {}
    for _ in range(chance.randint(4, 9)):
        text = _SMALL_TALK
        if not orders or chance.random() < 0.5:
            number = len(orders) + 1
            orders[number] = Order(takes=chance.uniform(1, 25), updates=chance.random() < 0.4)
            text = f"please order number {number}"
        after = chance.uniform(0.3, 3) if chance.random() < 0.6 else chance.uniform(3, 12)
        turns.append(Turn(text, after, waits_for_bot=chance.random() < 0.5))
    return Script(turns, orders, tail=chance.uniform(3, 40))


@dataclass(frozen=True)
class _Fact:
    """One thing that a message of the context says."""

    #: "user", "ordered", "words" of the bot, "result" or "update".
    kind: str
    #: The number of the order, None for small talk; for words of the bot, the text.
    value: Any
    #: The place of the message in the context.
    position: int
    #: Whether the message was there before it said this: the tool message of a call.
    in_place: bool = False


class Mind:
    """Answers as an LLM that says what is new since its last words.

    New is what a message after its last words says, and a result that Pipecat has written into the
    tool message of the call, unless words after that message mention it. With ``rereads``, the LLM
    says every result in its context that its words after it do not mention to the end.
    """

    def __init__(self, *, rereads: bool = False):
        """Create a mind."""
        self._rereads = rereads
        #: For each run of the LLM, the kinds of the facts in its context that were not there in the
        #: run before.
        self.runs: list[set[str]] = []
        self._seen: Counter[tuple[str, object]] = Counter()

    def answer(self, messages: Sequence[LLMContextMessage]) -> Answer:
        """Answer the messages of a context."""
        facts = [fact for place, message in enumerate(messages) for fact in _read(message, place)]
        seen = Counter((fact.kind, fact.value) for fact in facts)
        self.runs.append({kind for kind, _ in seen - self._seen})
        self._seen = seen

        last_words = max((fact.position for fact in facts if fact.kind == "words"), default=-1)
        new = [fact for fact in facts if fact.position > last_words]
        wanted = _find_values(facts, "user") - _find_values(facts, "ordered") - {None}
        parts: list[str] = []
        if None in _find_values(new, "user"):
            parts.append(_SMALL_TALK_ANSWER)
        parts.extend(f"I ask for number {number}" for number in sorted(wanted))
        parts.extend(telling(number) for number in self._find_news(facts, last_words))
        cooking = sorted(_find_values(new, "update"))
        parts = parts or [f"they cook number {number}" for number in cooking] or [_FILLER]
        text = " and ".join(parts)
        if wanted:
            return ToolCalls(*(ToolCall("order", {"number": n}) for n in sorted(wanted)), text=text)
        return text

    def _find_news(self, facts: Sequence[_Fact], last_words: int) -> list[int]:
        """Find the results to say."""
        news: dict[int, None] = {}
        for fact in facts:
            if fact.kind == "result":
                later = [f.value for f in facts if f.kind == "words" and f.position > fact.position]
                if self._rereads:
                    is_new = not any(telling(fact.value) in words for words in later)
                elif fact.in_place:
                    is_new = not any(f"order {fact.value} " in f"{words} " for words in later)
                else:
                    is_new = fact.position > last_words
                if is_new:
                    news[fact.value] = None
        return list(news)


def _find_values(facts: Sequence[_Fact], kind: str) -> set[Any]:
    return {fact.value for fact in facts if fact.kind == kind}


def _read(message: Any, place: int) -> Iterator[_Fact]:
    content = message.get("content")
    match message["role"]:
        case "user":
            last = content.split()[-1]
            yield _Fact("user", int(last) if last.isdigit() else None, place)
        case "assistant":
            for call in message.get("tool_calls", ()):
                yield _Fact("ordered", json.loads(call["function"]["arguments"])["number"], place)
            if content:
                yield _Fact("words", content, place)
        case role:
            for kind, number in _read_data(content, heard=""):
                yield _Fact(kind, number, place, in_place=role == "tool")


def _read_data(value: Any, heard: str) -> Iterator[tuple[str, int]]:
    """Find results and updates in data, which Pipecat nests as text."""
    if isinstance(value, str):
        try:
            decoded = json.loads(value)
        except ValueError:
            return
        yield from _read_data(decoded, heard)
    elif isinstance(value, list):
        for item in value:
            yield from _read_data(item, heard)
    elif isinstance(value, dict):
        heard = value.get("heard", heard)
        # What was heard to its end is not said again.
        if "ready" in value and telling(value["ready"]) not in heard:
            yield "result", value["ready"]
        if "cooking" in value:
            yield "update", value["cooking"]
        for item in value.values():
            yield from _read_data(item, heard)


class Kitchen(PipecatBaseWorker):
    """Cooks the orders of a script."""

    def __init__(self, orders: Mapping[int, Order]):
        """Create a kitchen."""
        super().__init__("kitchen")
        self._orders = orders
        self._ordered: set[int] = set()
        #: The time at which each order was ready.
        self.ready: dict[int, float] = {}
        #: How many updates were sent.
        self.updates = 0

    @pipecats_job(name="cook")
    async def cook(self, message: BusJobRequestMessage) -> Any:
        """Cook an order."""
        response = await self._cook(message)
        await self.send_job_response(message.job_id, response)

    async def _cook(self, message: BusJobRequestMessage) -> dict[str, Any]:
        assert message.payload is not None
        number = message.payload["number"]
        if number in self._ordered:
            # The LLM orders twice when it runs again before its first call is in the context.
            return {"ordered before": number}
        self._ordered.add(number)
        order = self._orders[number]
        await asyncio.sleep(order.takes / 2)
        if order.updates:
            self.updates += 1
            await self.send_job_update(message.job_id, {"cooking": number})
        await asyncio.sleep(order.takes / 2)
        self.ready[number] = asyncio.get_running_loop().time()
        return {"ready": number}


class OurKitchen(Kitchen, BaseWorker):
    """The same kitchen on our jobs."""

    @job(name="cook")
    async def cook(self, message: BusJobRequestMessage) -> dict[str, Any]:
        """Cook an order."""
        return await self._cook(message)


class _UnobservedWorker(PipelineWorker):
    """A worker without observers, which take half of the time of a conversation."""

    def __init__(self, pipeline: BasePipeline, **options: Any):
        super().__init__(
            pipeline, **options | {"enable_rtvi": False, "enable_turn_tracking": False}
        )


class Bot(PipecatLLMWorker, _UnobservedWorker):
    """A bot with a voice, without its tool."""

    def __init__(self, mind: Mind | None = None):
        """Create the active worker of the conversation."""
        self.mind = mind or Mind()
        self.user, self.voice = SimulatedUser(pace=_PACE), VoiceOutput(pace=_PACE)
        self.context = LLMContext()
        aggregators = LLMContextAggregatorPair(self.context, user_params=turns_of_simulated_user())
        llm = ScriptedLLM(self.mind.answer)
        parts = [self.user, aggregators.user(), llm, self.voice, aggregators.assistant()]
        super().__init__("bot", llm=llm, pipeline=Pipeline(parts), active=True)


class PipecatsBot(Bot):
    """Asks the kitchen with Pipecat's background tool."""

    @tool(cancel_on_interruption=False)
    async def order(self, params: FunctionCallParams, number: int) -> None:
        """Order a dish.

        Args:
            params: How Pipecat calls a tool.
            number: The number of the dish.
        """
        asked = JobParams(name="cook", payload={"number": number})
        async with self.job("kitchen", params=asked) as cooking:
            async for event in cooking:
                if event.type == JobEvent.UPDATE:
                    await params.result_callback(
                        event.data, properties=FunctionCallResultProperties(is_final=False)
                    )
        await params.result_callback(cooking.response)


class OurBot(LLMWorker, Bot):
    """Asks the kitchen with a job tool."""

    @job_tool("kitchen", job="cook", cancel_on_interruption=False)
    async def order(self, number: int):
        """Order a dish.

        Args:
            number: The number of the dish.
        """
        return {"number": number}


@dataclass(frozen=True)
class Side:
    """A way to ask in the background."""

    name: str
    bot: type[Bot]
    kitchen: type[Kitchen]
    bus: Callable[[], WorkerBus]


OURS = Side("pipecat-jobs", OurBot, OurKitchen, RoutedBus)
PIPECATS = Side("Pipecat's", PipecatsBot, Kitchen, AsyncQueueBus)


@dataclass(frozen=True)
class Result:
    """What became of one result of the kitchen."""

    #: How often its words were spoken to their end.
    times: int
    #: Whether the user was silent long enough, after it had come, for it to be said.
    had_time: bool
    #: Seconds from the result to the first of the words that were spoken to their end; None if
    #: they never were.
    delay: float | None


@dataclass(frozen=True)
class Played:
    """What happened in one conversation."""

    results: Sequence[Result] = ()
    #: How many words the bot began while the user spoke.
    words_over_user: int = 0
    #: How often the LLM ran for a result, with nothing new of the user.
    runs_for_results: int = 0
    #: How often the LLM ran for an update and for nothing else.
    runs_for_updates: int = 0
    updates: int = 0
    #: What was said by whom, for the reader.
    transcript: Sequence[str] = field(default=(), compare=False)


@asynccontextmanager
async def running(
    side: Side, orders: Mapping[int, Order], mind: Mind | None = None
) -> AsyncIterator[tuple[Bot, Kitchen]]:
    """Run a bot and its kitchen as long as the context is open."""
    bot, kitchen = side.bot(mind), side.kitchen(orders)
    runner = WorkerRunner(bus=side.bus(), handle_sigint=False)
    ready = asyncio.Event()
    bot.add_event_handler("on_activated", lambda *_: ready.set())
    await runner.add_workers(kitchen, bot)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(runner.run(auto_end=False))
        try:
            await ready.wait()
            # The tools are set by a frame.
            await bot.flush_pipeline()
            yield bot, kitchen
        finally:
            await runner.cancel()


async def play(side: Side, script: Script, mind: Mind | None = None) -> Played:
    """Play a conversation, on the virtual clock of the running event loop."""
    async with running(side, script.orders, mind) as (bot, kitchen):
        for turn in script.turns:
            if turn.waits_for_bot:
                await bot.user.until_bot_silent(turn.after)
            else:
                await asyncio.sleep(turn.after)
            await bot.user.say(turn.text)
        await asyncio.sleep(script.tail)
        return _describe(bot, kitchen, asyncio.get_running_loop().time())


def _describe(bot: Bot, kitchen: Kitchen, ended: float) -> Played:
    runs = bot.mind.runs
    return Played(
        results=[
            _describe_result(bot, number, ready, ended) for number, ready in kitchen.ready.items()
        ],
        words_over_user=count_words_over_user(bot),
        runs_for_results=sum("result" in new and "user" not in new for new in runs),
        runs_for_updates=sum("update" in new and not new & {"user", "result"} for new in runs),
        updates=kitchen.updates,
        transcript=_write(bot, kitchen),
    )


def _describe_result(bot: Bot, number: int, ready: float, ended: float) -> Result:
    told = [began for speech in bot.voice.speeches for began in _find_tellings(speech, number)]
    return Result(
        times=len(told),
        had_time=_longest_silence(bot.user.speeches, ready, ended) >= ENOUGH_SILENCE,
        delay=told[0] - ready if told else None,
    )


def _find_tellings(speech: Speech, number: int) -> Iterator[float]:
    """Find the times at which the bot began to say a result that it said to its end."""
    words = telling(number).split()
    for start in range(len(speech.words) - len(words) + 1):
        said = speech.words[start : start + len(words)]
        if [word.text for word in said] == words and said[-1].ended is not None:
            yield said[0].began


def _longest_silence(speeches: Sequence[Speech], since: float, until: float) -> float:
    """Find the longest time without the user's voice."""
    longest = 0.0
    for speech in speeches:
        assert speech.ended is not None
        longest = max(longest, speech.began - since)
        since = max(since, speech.ended)
    return max(longest, until - since)


def count_words_over_user(bot: Bot) -> int:
    """Count the words that the bot began while the user spoke."""
    # What begins at the same instant was not said over the other.
    return sum(
        spoken.began < word.began and (spoken.ended is None or word.began < spoken.ended)
        for speech in bot.voice.speeches
        for word in speech.words
        for spoken in bot.user.speeches
    )


def _write(bot: Bot, kitchen: Kitchen) -> list[str]:
    spoken = [("user", s) for s in bot.user.speeches] + [("bot", s) for s in bot.voice.speeches]
    lines = [(s.began, f"{who}: {s.text}{' --' if s.interrupted else ''}") for who, s in spoken] + [
        (ready, f"(order {number} is ready)") for number, ready in kitchen.ready.items()
    ]
    return [f"{time:6.2f} {line}" for time, line in sorted(lines)]
