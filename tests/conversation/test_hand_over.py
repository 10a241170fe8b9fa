"""Reports go on at the worker that holds the conversation after a hand-over."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pipecat.bus import WorkerBus
from pipecat.frames.frames import LLMContextFrame
from pipecat.processors.aggregators.llm_context import LLMContext, LLMContextMessage
from pipecat.services.llm_service import FunctionCallParams
from support.voice_talk import (
    Host,
    Kitchen,
    KitchenTools,
    Reply,
    Talk,
    find_news,
    orders,
    play,
    say_news,
)

from pipecat_jobs import PipelineWorker, tool
from pipecat_jobs.conversation import FloorHolder, ReportState
from pipecat_jobs.testing import ToolCall, ToolCalls
from pipecat_jobs.testing.voice import Answer

pytestmark = pytest.mark.every_bus

NewBus = Callable[[], WorkerBus]

LONG = "the very long report about the order"


class Desk(KitchenTools, Host):
    """One of two workers who talk to the user in turn."""

    def __init__(self, name: str, reply: Reply = say_news, *, active: bool = False):
        super().__init__(name, reply, active=active, bridged=())
        self.held = False

    def holds_reports(self) -> bool:
        return self.held

    @tool
    async def go_to_second(self, params: FunctionCallParams):
        """Have the second desk go on."""
        await params.result_callback({"status": "done"})
        await self.activate_worker("second", deactivate_self=True)


@asynccontextmanager
async def two_desks(
    new_local_bus: NewBus,
) -> AsyncIterator[tuple[Talk, PipelineWorker, Desk, Desk]]:
    """A conversation with two desks behind a bridge, of which the first one holds it."""
    talk = Talk(new_local_bus())
    main, first, second = talk.bridge(), Desk("first", active=True), Desk("second")
    async with talk.running(main, first, second):
        yield talk, main, first, second


def goes_on_when_told(messages: Sequence[LLMContextMessage]) -> Answer:
    """Hand the conversation over when the user says "second"."""
    if any(_is_wish(message) for message in find_news(messages)):
        return ToolCalls(ToolCall("go_to_second", {}), text="one moment")
    return say_news(messages)


def _is_wish(message: Any) -> bool:
    return message.get("role") == "user" and "second" in str(message.get("content"))


async def go_to_second(main: PipelineWorker) -> None:
    await main.deactivate_worker("first")
    await main.activate_worker("second")


def test_a_report_that_waits_is_said_by_the_next_worker(new_local_bus: NewBus):
    async def story() -> None:
        async with two_desks(new_local_bus) as (talk, main, first, second):
            first.held = True
            receipt = await first.report("ready")
            await asyncio.sleep(3)
            assert receipt.state is ReportState.WAITING
            await go_to_second(main)
            assert await receipt.until_settled() is ReportState.SAID
            assert talk.said == ["news ready"]
            assert [len(first.contexts), len(second.contexts)] == [0, 1]
            await asyncio.sleep(30)
            assert [change.state for change in first.changes][-1] is ReportState.SAID
            assert talk.said == ["news ready"]

    play(story)


def test_a_report_that_is_being_said_is_said_once(new_local_bus: NewBus):
    async def story() -> None:
        async with two_desks(new_local_bus) as (talk, main, first, second):
            receipt = await first.report(LONG)
            await talk.until_bot_says(1)
            await asyncio.sleep(0.7)
            await go_to_second(main)
            assert await receipt.until_settled() is ReportState.SAID
            await asyncio.sleep(30)
            assert talk.said == [f"news {LONG}"]
            assert second.contexts == []
            assert second.floor.holder is None

    play(story)


def test_a_report_that_is_cut_off_after_the_hand_over_comes_again(new_local_bus: NewBus):
    async def story() -> None:
        async with two_desks(new_local_bus) as (talk, main, first, second):
            receipt = await first.report(LONG)
            await talk.until_bot_says(1)
            await asyncio.sleep(0.5)
            await go_to_second(main)
            await asyncio.sleep(0.5)
            await talk.user.say("wait a moment please")
            assert await receipt.until_settled() is ReportState.SAID
            cut, answer, again = talk.said
            assert cut.startswith("news the")
            assert receipt.history[3].heard == cut
            assert answer == "you said wait a moment please"
            assert again == f"news {LONG}"
            assert len(second.contexts) == 2

    play(story)


def test_a_tool_hands_over_while_a_report_waits(new_local_bus: NewBus):
    async def story() -> None:
        talk = Talk(new_local_bus())
        first, second = Desk("first", goes_on_when_told, active=True), Desk("second")
        async with talk.running(talk.bridge(), first, second):
            saying = asyncio.create_task(talk.user.say("please give me the second desk"))
            await asyncio.sleep(0.5)
            first.held = True
            receipt = await first.report("ready")
            await saying
            assert await receipt.until_settled() in (ReportState.SAID, ReportState.COVERED)
            await asyncio.sleep(30)
            assert sum("news ready" in said for said in talk.said) == 1
            assert first.active is False
            assert second.active

    play(story)


def test_a_report_waits_while_no_worker_holds_the_conversation(new_local_bus: NewBus):
    async def story() -> None:
        async with two_desks(new_local_bus) as (talk, main, first, _second):
            await main.deactivate_worker("first")
            await asyncio.sleep(1)
            receipt = await first.report("ready")
            await asyncio.sleep(10)
            assert receipt.state is ReportState.WAITING
            await main.activate_worker("second")
            assert await receipt.until_settled() is ReportState.SAID
            assert talk.said == ["news ready"]

    play(story)


def test_reports_go_back_with_the_conversation(new_local_bus: NewBus):
    async def story() -> None:
        async with two_desks(new_local_bus) as (talk, main, first, second):
            first.held = second.held = True
            receipt = await first.report("ready", expires_after=None)
            await go_to_second(main)
            await asyncio.sleep(5)
            assert receipt.state is ReportState.WAITING
            first.held = False
            await main.deactivate_worker("second")
            await main.activate_worker("first")
            assert await receipt.until_settled() is ReportState.SAID
            assert talk.said == ["news ready"]
            assert second.contexts == []

    play(story)


def test_the_user_speaks_during_the_hand_over(new_local_bus: NewBus):
    async def story() -> None:
        async with two_desks(new_local_bus) as (talk, main, first, _second):
            saying = asyncio.create_task(talk.user.say("a question of many words " * 4))
            await asyncio.sleep(1)
            receipt = await first.report("ready")
            await go_to_second(main)
            await saying
            assert receipt.state is ReportState.WAITING
            assert await receipt.until_settled() is ReportState.COVERED
            assert len(talk.said) == 1

    play(story)


def test_a_second_activation_of_the_active_worker_does_not_free_the_floor(new_local_bus: NewBus):
    async def story() -> None:
        talk = Talk(new_local_bus())
        main, first = talk.bridge(), Desk("first", active=True)
        async with talk.running(main, first):
            saying = asyncio.create_task(talk.user.say("one two three four five"))
            await asyncio.sleep(0.5)
            await main.activate_worker("first")
            await asyncio.sleep(0.1)
            assert first.floor.holder is FloorHolder.USER
            await saying

    play(story)


def test_a_worker_knows_that_the_user_speaks_when_it_gets_the_conversation(new_local_bus: NewBus):
    async def story() -> None:
        async with two_desks(new_local_bus) as (talk, main, first, second):
            saying = asyncio.create_task(talk.user.say("one two three"))
            await asyncio.sleep(0.5)
            await go_to_second(main)
            await asyncio.sleep(0.1)
            assert second.floor.holder is FloorHolder.USER
            assert first.floor.holder is None
            await saying
            await asyncio.sleep(1)
            assert second.floor.holder is not FloorHolder.USER

    play(story)


def test_an_answer_that_is_still_generated_goes_on_at_the_next_worker(new_local_bus: NewBus):
    async def story() -> None:
        async with two_desks(new_local_bus) as (talk, main, first, second):
            receipt = await first.report(LONG)
            await first.running.wait()
            await go_to_second(main)
            assert await receipt.until_settled() is ReportState.SAID
            await asyncio.sleep(30)
            # Pipecat's second worker repeats what it hears of the first one.
            assert len(talk.said) == 1
            assert second.contexts == []
            assert second.floor.holder is None

    play(story)


def test_what_was_heard_is_known_when_the_hand_over_follows_at_once(new_local_bus: NewBus):
    async def story() -> None:
        async with two_desks(new_local_bus) as (talk, main, first, _second):
            receipt = await first.report(LONG)
            await talk.until_bot_says(1)
            await asyncio.sleep(1)
            saying = asyncio.create_task(talk.user.say("wait a moment please"))
            await asyncio.sleep(0)
            await go_to_second(main)
            await saying
            assert await receipt.until_settled() is ReportState.SAID
            assert talk.said[-1] == f"news {LONG}"
            await asyncio.sleep(30)
            assert len(talk.said) == 3

    play(story)


def test_the_next_worker_passes_the_answer_of_an_open_question_on(new_local_bus: NewBus):
    async def story() -> None:
        talk, kitchen = Talk(new_local_bus()), Kitchen()
        first = Desk("first", orders("order_carefully"), active=True)
        second = Desk("second", orders("none"))
        main = talk.bridge()
        async with talk.running(main, kitchen, first, second):
            await talk.user.say("order")
            await talk.until_bot_says(2)
            await talk.user.until_bot_silent(3)
            await go_to_second(main)
            await talk.user.say("yes")
            await asyncio.sleep(20)
            assert kitchen.sauces == [True]
            asked_at_second = [name for name in second.tools[0] if name.startswith("answer_")]
            assert len(asked_at_second) == 1
            assert "'sauce': True" in talk.said[-1]
            assert not any(name.startswith("answer_") for name in second.tools[-1])
            assert first.job_groups == {}

    play(story)


def test_a_question_that_waits_is_asked_by_the_next_worker(new_local_bus: NewBus):
    async def story() -> None:
        talk, kitchen = Talk(new_local_bus()), Kitchen()
        first = Desk("first", orders("order_carefully"), active=True)
        second = Desk("second", orders("none"))
        main = talk.bridge()
        async with talk.running(main, kitchen, first, second):
            first.held = True
            await talk.user.say("order")
            await asyncio.sleep(5)
            await go_to_second(main)
            await talk.until_bot_says(2)
            await talk.user.until_bot_silent(3)
            await talk.user.say("yes")
            await asyncio.sleep(20)
            assert kitchen.sauces == [True]
            assert len(first.contexts) == 1

    play(story)


def hands_over_after_an_order(messages: Sequence[LLMContextMessage]) -> Answer:
    """Order at first, and hand the conversation over when the user says "second"."""
    if any(_is_wish(message) for message in find_news(messages)):
        return goes_on_when_told(messages)
    return orders("order")(messages)


def test_a_tool_hands_over_once_the_job_in_the_background_has_ended(new_local_bus: NewBus):
    async def story() -> None:
        talk = Talk(new_local_bus())
        first, second = Desk("first", hands_over_after_an_order, active=True), Desk("second")
        async with talk.running(talk.bridge(), Kitchen(), first, second):
            await talk.user.say("order")
            await talk.until_bot_says(1)
            await talk.user.until_bot_silent(1)
            await talk.user.say("the second desk please")
            await asyncio.sleep(5)
            # Pipecat waits for every tool call of a worker before the worker hands over.
            assert first.active
            await asyncio.sleep(30)
            assert second.active
            assert sum("duck" in said for said in talk.said) == 1
            assert [change.state.value for change in first.changes][-1] in ("said", "covered")

    play(story)


def test_an_answer_without_words_is_over_at_the_next_worker_too(new_local_bus: NewBus):
    async def story() -> None:
        talk = Talk(new_local_bus())
        main, second = talk.bridge(), Desk("second")
        first = Desk("first", lambda _: "", active=True)
        async with talk.running(main, first, second):
            receipt = await first.report("ready")
            await first.running.wait()
            await go_to_second(main)
            assert await receipt.until_settled() is ReportState.SAID
            assert talk.said == ["news ready"]
            assert second.floor.holder is None

    play(story)


def test_the_end_of_the_users_turn_may_come_between_two_workers(new_local_bus: NewBus):
    async def story() -> None:
        async with two_desks(new_local_bus) as (talk, main, _first, second):
            saying = asyncio.create_task(talk.user.say("one two three four five"))
            await asyncio.sleep(0.5)
            await go_to_second(main)
            await asyncio.sleep(0.1)
            assert second.floor.holder is FloorHolder.USER
            # The run that answers the user, without the frame that ends the turn.
            context = LLMContext([{"role": "user", "content": "one"}])
            await second.llm.queue_frame(LLMContextFrame(context))
            await asyncio.sleep(0.01)
            assert second.floor.holder is FloorHolder.LLM
            await saying

    play(story)
