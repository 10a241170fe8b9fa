"""Reports of LLM workers behind a bridge, with a voice, on virtual time."""

import asyncio
from collections.abc import Callable

import pytest
from pipecat.bus import WorkerBus
from support.voice_talk import Host, Kitchen, KitchenTools, Talk, orders, play, settle, states

from pipecat_jobs.conversation import ReportState

pytestmark = pytest.mark.every_bus

NewBus = Callable[[], WorkerBus]


def bridged(name: str = "host", *, active: bool = True, **options: object) -> Host:
    return Host(name, active=active, bridged=(), **options)  # type: ignore[arg-type]


def test_a_report_is_said_in_silence(new_local_bus: NewBus):
    async def story() -> None:
        talk, host = Talk(new_local_bus()), bridged()
        async with talk.running(talk.bridge(), host):
            receipt = await host.report("ready")
            assert await receipt.until_settled() is ReportState.SAID
            assert states(receipt) == ["waiting", "offered", "speaking", "said"]
            assert talk.said == ["news ready"]
            await asyncio.sleep(30)
            assert talk.said == ["news ready"]
            assert len(host.contexts) == 1

    play(story)


def test_a_report_that_the_user_cuts_off_comes_again(new_local_bus: NewBus):
    async def story() -> None:
        talk, host = Talk(new_local_bus()), bridged()
        async with talk.running(talk.bridge(), host):
            receipt = await host.report("the very long report about the order")
            await talk.until_bot_says(1)
            await asyncio.sleep(1)
            await talk.user.say("wait a moment please")
            assert await receipt.until_settled() is ReportState.SAID
            assert states(receipt) == [
                "waiting", "offered", "speaking", "interrupted", "offered", "speaking", "said"
            ]  # fmt: skip
            cut, answer, again = talk.said
            assert receipt.history[3].heard == cut == "news the very"
            assert answer == "you said wait a moment please"
            assert again == "news the very long report about the order"

    play(story)


def test_a_report_waits_for_the_user_and_goes_into_the_answer(new_local_bus: NewBus):
    async def story() -> None:
        talk, host = Talk(new_local_bus()), bridged()
        async with talk.running(talk.bridge(), host):
            saying = asyncio.create_task(talk.user.say("a long question that takes a while"))
            await asyncio.sleep(0.7)
            receipt = await host.report("ready")
            await saying
            assert receipt.state is ReportState.WAITING
            assert await receipt.until_settled() is ReportState.COVERED
            assert talk.said == ["news ready and you said a long question that takes a while"]

    play(story)


def test_two_reports_wait_for_the_bot_and_are_said_together(new_local_bus: NewBus):
    async def story() -> None:
        talk, host = Talk(new_local_bus()), bridged()
        async with talk.running(talk.bridge(), host):
            await talk.user.say("hello")
            await talk.until_bot_says(1)
            receipts = [await host.report("one"), await host.report("two")]
            assert await settle(*receipts) == [ReportState.SAID] * 2
            assert talk.said == ["you said hello", "news one and news two"]

    play(story)


class Waiter(KitchenTools, Host):
    """A waiter behind the bridge."""


def test_a_tool_in_the_background_reports_its_result(new_local_bus: NewBus):
    async def story() -> None:
        talk = Talk(new_local_bus())
        waiter = Waiter("host", orders("order"), active=True, bridged=())
        async with talk.running(talk.bridge(), Kitchen(), waiter):
            await talk.user.say("order")
            await asyncio.sleep(30)
            assert [change.state.value for change in waiter.changes] == [
                "waiting", "offered", "speaking", "said"
            ]  # fmt: skip
            asked, result = talk.said
            assert asked == "I ask"
            assert "duck" in result

    play(story)


def test_the_user_answers_a_question(new_local_bus: NewBus):
    async def story() -> None:
        talk, kitchen = Talk(new_local_bus()), Kitchen()
        waiter = Waiter("host", orders("order_carefully"), active=True, bridged=())
        async with talk.running(talk.bridge(), kitchen, waiter):
            await talk.user.say("order")
            await talk.until_bot_says(2)
            await talk.user.until_bot_silent(1)
            await talk.user.say("yes")
            await asyncio.sleep(20)
            assert kitchen.sauces == [True]
            assert "'sauce': True" in talk.said[-1]

    play(story)
