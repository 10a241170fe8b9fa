"""Reports, from the request to the receipt, on the virtual clock and without a pipeline."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
from pipecat.processors.aggregators.llm_context import LLMContextMessage
from support.snippets import ROOT

from pipecat_jobs._llm.runs import Runs
from pipecat_jobs.conversation import Floor, FloorHolder, Receipt, ReportChange, ReportState
from pipecat_jobs.conversation.reports import MOST_TOGETHER, Reports
from pipecat_jobs.conversation.states import TRANSITIONS
from pipecat_jobs.testing import run_virtual

LATENCY = 0.1
WORD = 0.3


class Scene:
    """An LLM that answers each run with a few words, a bot that speaks them, and a user."""

    def __init__(self) -> None:
        self.floor = Floor()
        self.runs = Runs(self.floor)
        self.changes: list[ReportChange] = []
        self.reports = Reports("bot", self.floor, self, self.changes.append)
        self.runs.listener = self.reports
        self.context: list[LLMContextMessage] = []
        self.offers: list[list[Any]] = []
        """The reports of each message that was offered."""
        self.answers: list[str] = []
        """The LLM's next answers; each other one has the words ``one two three``."""
        self.calls = False
        """Whether the LLM calls a function for which the conversation waits."""
        self.can_speak = True
        self.held = False
        self.cuts = 0
        self._speech: asyncio.Task[None] | None = None
        self.tasks: set[asyncio.Task[None]] = set()

    def holds_reports(self) -> bool:
        return self.held

    async def run_llm(self, message: LLMContextMessage) -> None:
        self.context.append(message)
        self.offers.append(json.loads(message["content"])["reports"])
        self.start_task(self._run(), "run")

    async def cut_bot(self) -> None:
        self.cuts += 1
        self.interrupt()

    def start_task(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    # -- the LLM and the bot -----------------------------------------------------------------

    async def _run(self) -> None:
        await asyncio.sleep(LATENCY)
        self._speech = asyncio.current_task()
        self.context = self.runs.begin(self.context) or self.context
        text = self.answers.pop(0) if self.answers else "one two three"
        await asyncio.sleep(LATENCY)
        self.runs.add_text(text)
        run = self.runs.latest
        if self.calls:
            self.begin_call()
        self.runs.end()
        if self.calls:
            self.runs.note_call(run)
        if text:
            await self._speak(text)

    async def _speak(self, text: str) -> None:
        heard: list[str] = []
        self.floor.take(FloorHolder.BOT)
        self.runs.on_bot_speaks()
        try:
            for word in text.split():
                await asyncio.sleep(WORD)
                heard.append(word)
        finally:
            self.floor.release(FloorHolder.BOT)
            self.runs.on_bot_silent()
            if heard:
                self.context.append({"role": "assistant", "content": " ".join(heard)})
                self.runs.on_text_written(" ".join(heard))
        self._speech = None

    def interrupt(self) -> None:
        self.runs.cut()
        self.reports.on_interruption()
        if self._speech is not None:
            self._speech.cancel()
            self._speech = None

    # -- the user ----------------------------------------------------------------------------

    def user_starts(self) -> None:
        self.floor.take(FloorHolder.USER)
        self.interrupt()

    def user_stops(self, words: str = "") -> None:
        """Stop speaking; the LLM answers, if there were words."""
        self.floor.release(FloorHolder.USER)
        self.reports.on_user_turn()
        if words:
            self.context.append({"role": "user", "content": words})
            self.start_task(self._run(), "run")

    def begin_call(self) -> None:
        self.floor.take(FloorHolder.TOOL)

    def end_call(self) -> None:
        self.floor.release(FloorHolder.TOOL)

    async def at(self, seconds: float) -> None:
        await asyncio.sleep(seconds - asyncio.get_running_loop().time())

    def states(self, receipt: Receipt) -> list[str]:
        return [change.state.value for change in receipt.history]

    @property
    def said(self) -> list[str]:
        return [str(m["content"]) for m in self.context if m["role"] == "assistant"]


def play(story: Callable[[Scene], Awaitable[None]]) -> Scene:
    async def main() -> Scene:
        scene = Scene()
        await story(scene)
        scene.reports.drop_all("the session ended")
        for task in list(scene.tasks):
            task.cancel()
        await asyncio.gather(*scene.tasks, return_exceptions=True)
        assert scene.reports.open == []
        check(scene.changes)
        return scene

    return run_virtual(main())


def check(changes: list[ReportChange]) -> None:
    """Every report settles exactly once, with its last change."""
    by_report: dict[str, list[ReportState]] = {}
    for change in changes:
        by_report.setdefault(change.report_id, []).append(change.state)
    for states in by_report.values():
        assert [state.settled for state in states] == [False] * (len(states) - 1) + [True]


def test_the_diagram_of_the_docs_shows_the_transitions():
    diagram = (ROOT / "docs/how-to/reports.md").read_text().split("```mermaid")[1].split("```")[0]
    drawn = {
        (ReportState(start), ReportState(end))
        for line in diagram.splitlines()
        if "-->" in line and "[*]" not in line
        for start, end in [(part.strip() for part in line.split("-->"))]
    }
    assert drawn == {(start, end) for start, ends in TRANSITIONS.items() for end in ends}


def test_a_report_is_offered_in_silence_and_said():
    async def story(scene: Scene) -> None:
        receipt = scene.reports.add({"order": 7})
        assert await receipt.until_settled() is ReportState.SAID
        assert scene.states(receipt) == ["waiting", "offered", "speaking", "said"]
        assert scene.offers == [[{"id": receipt.report_id, "report": {"order": 7}}]]
        assert asyncio.get_running_loop().time() == pytest.approx(2 * LATENCY + 3 * WORD)
        assert scene.floor.holder is None

    play(story)


@pytest.mark.parametrize("holder", [FloorHolder.USER, FloorHolder.BOT, FloorHolder.TOOL])
def test_a_report_waits_until_the_floor_is_free_for_a_while(holder: FloorHolder):
    async def story(scene: Scene) -> None:
        scene.floor.take(holder)
        scene.reports.add("ready")
        await scene.at(10)
        scene.floor.release(holder)
        await scene.at(10.69)
        assert scene.offers == []
        await scene.at(10.71)
        assert len(scene.offers) == 1

    play(story)


def test_speech_in_the_settling_time_starts_it_again():
    async def story(scene: Scene) -> None:
        scene.user_starts()
        scene.reports.add("ready")
        await scene.at(1)
        scene.user_stops()
        await scene.at(1.5)
        scene.user_starts()
        await scene.at(2)
        scene.user_stops()
        await scene.at(2.69)
        assert scene.offers == []
        await scene.at(2.71)
        assert len(scene.offers) == 1

    play(story)


def test_what_waits_in_one_silence_is_one_message_and_one_run():
    async def story(scene: Scene) -> None:
        scene.user_starts()
        receipts = [scene.reports.add(number) for number in range(3)]
        await scene.at(1)
        scene.user_stops()
        for receipt in receipts:
            assert await receipt.until_settled() is ReportState.SAID
        assert [[r["report"] for r in offer] for offer in scene.offers] == [[0, 1, 2]]
        assert scene.said == ["one two three"]

    play(story)


def test_one_message_has_a_limited_number_of_reports():
    async def story(scene: Scene) -> None:
        scene.user_starts()
        receipts = [scene.reports.add(number) for number in range(MOST_TOGETHER + 2)]
        scene.user_stops()
        for receipt in receipts:
            await receipt.until_settled()
        assert [len(offer) for offer in scene.offers] == [MOST_TOGETHER, 2]

    play(story)


def test_a_report_that_is_cut_off_is_offered_again_with_the_words_that_were_heard():
    async def story(scene: Scene) -> None:
        receipt = scene.reports.add("ready")
        await scene.at(2 * LATENCY + 2 * WORD + 0.1)
        scene.user_starts()
        await scene.at(2)
        scene.user_stops("wait")
        assert await receipt.until_settled() is ReportState.SAID
        assert scene.states(receipt) == [
            "waiting", "offered", "speaking", "interrupted", "offered", "speaking", "said"
        ]  # fmt: skip
        assert receipt.history[3].heard == "one two"
        assert scene.offers[1] == [{"id": receipt.report_id, "report": "ready", "heard": "one two"}]
        assert scene.said == ["one two", "one two three", "one two three"]

    play(story)


def test_a_report_that_is_cut_off_twice_is_offered_with_all_words_that_were_heard():
    async def story(scene: Scene) -> None:
        scene.answers = ["one two three four", "three four", "four"]
        receipt = scene.reports.add("ready")
        async for change in receipt:
            if change.state is ReportState.SPEAKING:
                words = 2 if change is receipt.history[2] else 1
                if len(scene.offers) < 3:
                    await asyncio.sleep(words * WORD + 0.1)
                    scene.user_starts()
                    scene.user_stops()
        assert [offer[0].get("heard") for offer in scene.offers] == [
            None, "one two", "one two three"
        ]  # fmt: skip
        cuts = [change.heard for change in receipt.history if change.heard]
        assert cuts == ["one two", "three"]

    play(story)


def test_an_answer_in_between_does_not_see_a_report_that_is_offered_again():
    async def story(scene: Scene) -> None:
        scene.reports.add("ready")
        await scene.at(2 * LATENCY + 2 * WORD + 0.1)
        scene.user_starts()
        await scene.at(2)
        scene.user_stops("wait")
        await scene.at(2 + LATENCY + 0.01)
        assert [message["role"] for message in scene.context] == ["assistant", "user"]
        await scene.at(10)
        assert [m["role"] for m in scene.context[-2:]] == ["developer", "assistant"]

    play(story)


def test_a_report_of_which_nothing_was_heard_is_covered_by_the_answer_to_the_user():
    async def story(scene: Scene) -> None:
        receipt = scene.reports.add("ready")
        await scene.at(2 * LATENCY + WORD / 2)
        scene.user_starts()
        await scene.at(2)
        scene.user_stops("wait")
        assert await receipt.until_settled() is ReportState.COVERED
        assert len(scene.offers) == 1

    play(story)


def test_a_report_that_waits_goes_into_the_answer_to_the_user():
    async def story(scene: Scene) -> None:
        scene.user_starts()
        receipt = scene.reports.add("ready")
        await scene.at(1)
        scene.user_stops("is it ready?")
        assert await receipt.until_settled() is ReportState.COVERED
        assert scene.offers == []
        report, question, answer = scene.context
        assert json.loads(str(report["content"]))["reports"] == [
            {"id": receipt.report_id, "report": "ready"}
        ]
        assert question["role"] == "user"
        assert answer["role"] == "assistant"

    play(story)


def test_no_report_goes_into_an_answer_while_code_holds_the_floor():
    async def story(scene: Scene) -> None:
        async with scene.floor.hold():
            receipt = scene.reports.add("ready")
            await scene.at(1)
            scene.user_starts()
            scene.user_stops("aisle")
            await scene.at(5)
            assert scene.said == ["one two three"]
            assert receipt.state is ReportState.WAITING
        assert await receipt.until_settled() is ReportState.SAID

    play(story)


def test_a_report_is_not_covered_by_what_the_llm_says_beside_a_call():
    async def story(scene: Scene) -> None:
        scene.user_starts()
        receipt = scene.reports.add("ready")
        scene.answers, scene.calls = ["one moment"], True
        await scene.at(1)
        scene.user_stops("a table, please")
        await scene.at(3)
        assert scene.said == ["one moment"]
        assert receipt.state is ReportState.INTERRUPTED
        scene.calls = False
        scene.end_call()
        scene.start_task(scene._run(), "run")
        assert await receipt.until_settled() is ReportState.SAID
        assert scene.said == ["one moment", "one two three", "one two three"]

    play(story)


def test_an_offer_that_an_interruption_drops_is_made_again():
    async def story(scene: Scene) -> None:
        lost = scene.start_task

        def lose(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
            if name == "run":
                work.close()
                scene.context.pop()
                return lost(asyncio.sleep(0), name)
            return lost(work, name)

        scene.start_task = lose
        receipt = scene.reports.add("ready")
        await scene.at(0.05)
        scene.start_task = lost
        scene.user_starts()
        assert receipt.state is ReportState.INTERRUPTED
        await scene.at(1)
        scene.user_stops()
        assert await receipt.until_settled() is ReportState.SAID

    play(story)


def test_an_offer_that_runs_no_llm_is_made_again_later():
    async def story(scene: Scene) -> None:
        real = scene.start_task

        def lose(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
            if name == "run":
                work.close()
                return real(asyncio.sleep(0), name)
            return real(work, name)

        scene.start_task = lose
        receipt = scene.reports.add("ready")
        await scene.at(9)
        assert receipt.state is ReportState.OFFERED
        scene.start_task = real
        assert await receipt.until_settled() is ReportState.SAID
        assert receipt.history[2].reason == "the LLM was not run"

    play(story)


def test_an_llm_that_says_nothing_gets_the_report_again_later_each_time():
    async def story(scene: Scene) -> None:
        scene.answers = [""] * 9
        receipt = scene.reports.add("ready")
        assert await receipt.until_settled() is ReportState.EXPIRED
        assert receipt.history[-1].reason == "it was offered 5 times"
        assert len(scene.offers) == 5
        assert asyncio.get_running_loop().time() > 0.7 * (1 + 2 + 4 + 8)

    play(story)


def test_a_report_expires_after_its_seconds():
    async def story(scene: Scene) -> None:
        scene.user_starts()
        receipt = scene.reports.add("ready", expires_after=60)
        assert await receipt.until_settled() is ReportState.EXPIRED
        assert asyncio.get_running_loop().time() == 60

    play(story)


def test_a_report_that_is_being_said_does_not_expire():
    async def story(scene: Scene) -> None:
        receipt = scene.reports.add("ready", expires_after=0.5)
        await scene.at(0.4)
        assert receipt.state is ReportState.SPEAKING
        assert await receipt.until_settled() is ReportState.SAID

    play(story)


def test_a_report_expires_after_its_user_turns():
    async def story(scene: Scene) -> None:
        scene.held = True
        receipt = scene.reports.add("ready", expires_after_turns=2)
        for second in (1, 3):
            await scene.at(second)
            scene.user_starts()
            scene.user_stops("hm")
        assert receipt.state is ReportState.EXPIRED
        assert receipt.history[-1].reason == "its user turns have run out"

    play(story)


def test_a_newer_report_of_the_same_key_takes_the_place_of_one_that_waits():
    async def story(scene: Scene) -> None:
        scene.user_starts()
        old = scene.reports.add("in the oven", key="order-7")
        other = scene.reports.add("in the oven", key="order-8")
        new = scene.reports.add("ready", key="order-7")
        assert old.state is ReportState.SUPERSEDED
        scene.user_stops()
        assert await new.until_settled() is ReportState.SAID
        assert other.state is ReportState.SAID
        assert [r["report"] for r in scene.offers[0]] == ["in the oven", "ready"]

    play(story)


def test_a_report_that_is_being_said_is_superseded_only_once_it_is_cut_off():
    async def story(scene: Scene) -> None:
        old = scene.reports.add("in the oven", key="order-7")
        await scene.at(2 * LATENCY + WORD + 0.1)
        new = scene.reports.add("ready", key="order-7")
        assert old.state is ReportState.SPEAKING
        scene.user_starts()
        await scene.at(2)
        assert old.state is ReportState.SUPERSEDED
        assert old.history[-1].reason == f"by report {new.report_id}"
        scene.user_stops()
        assert await new.until_settled() is ReportState.SAID

    play(story)


def test_an_urgent_report_cuts_the_bot_and_waits_for_the_user():
    async def story(scene: Scene) -> None:
        scene.answers = ["a very long answer " * 20]
        first = scene.reports.add("news")
        await scene.at(1)
        assert first.state is ReportState.SPEAKING
        urgent = scene.reports.add("fire", urgent=True)
        await scene.at(1.1)
        assert scene.cuts == 1
        assert first.state is ReportState.INTERRUPTED
        assert urgent.state is ReportState.OFFERED
        await urgent.until_settled()
        assert await first.until_settled() is ReportState.SAID

    play(story)


def test_an_urgent_report_does_not_cut_the_user():
    async def story(scene: Scene) -> None:
        scene.user_starts()
        urgent = scene.reports.add("fire", urgent=True)
        await scene.at(5)
        assert urgent.state is ReportState.WAITING
        scene.user_stops()
        await scene.at(5.01)
        assert urgent.state is ReportState.OFFERED
        assert scene.cuts == 0

    play(story)


def test_silent_reports_reach_the_llm_with_its_next_run_only():
    async def story(scene: Scene) -> None:
        for percent in (10, 50, 90):
            scene.reports.add({"percent": percent}, key="kitchen", silent=True)
        await scene.at(20)
        assert scene.context == []
        (silent,) = scene.reports.open
        scene.user_starts()
        scene.user_stops("how far is it?")
        assert await silent.receipt.until_settled() is ReportState.COVERED
        update, question, _ = scene.context
        assert json.loads(str(update["content"]))["updates"] == [
            {"id": silent.id, "report": {"percent": 90}}
        ]
        assert question["role"] == "user"
        assert len(scene.said) == 1

    play(story)


def test_a_rule_of_the_bot_holds_reports_back():
    async def story(scene: Scene) -> None:
        scene.held = True
        receipt = scene.reports.add("ready")
        await scene.at(5)
        scene.user_starts()
        scene.user_stops("my pin is 1234")
        await scene.at(10)
        assert receipt.state is ReportState.WAITING
        scene.held = False
        assert await receipt.until_settled() is ReportState.SAID

    play(story)


def test_the_end_of_the_session_drops_what_is_open():
    async def story(scene: Scene) -> None:
        speaking = scene.reports.add("one")
        await scene.at(0.5)
        waiting = scene.reports.add("two")
        scene.reports.drop_owed("the session ended")
        assert waiting.state is ReportState.DROPPED
        assert speaking.state is ReportState.SPEAKING
        scene.reports.drop_all("the session ended")
        assert speaking.state is ReportState.DROPPED

    play(story)


def test_an_answer_that_the_llm_breaks_off_was_not_said():
    async def story(scene: Scene) -> None:
        receipt = scene.reports.add("ready")
        await scene.at(LATENCY + 0.05)
        scene.runs.fail("the stream broke off")
        assert await receipt.until_settled() is ReportState.SAID
        assert "interrupted" in scene.states(receipt)
        assert len(scene.offers) == 2

    play(story)


def test_the_last_word_and_an_interruption_at_the_same_time_count_as_said():
    async def story(scene: Scene) -> None:
        receipt = scene.reports.add("ready")
        await scene.at(2 * LATENCY + 3 * WORD - 0.01)
        scene.runs.cut()
        assert await receipt.until_settled() is ReportState.SAID
        assert len(scene.offers) == 1

    play(story)


def test_a_receipt_gives_every_change_also_to_a_late_reader():
    async def story(scene: Scene) -> None:
        receipt = scene.reports.add("ready")
        await receipt.until_settled()
        assert [change.state.value async for change in receipt] == scene.states(receipt)

    play(story)


def test_speech_that_never_comes_is_offered_again():
    async def story(scene: Scene) -> None:
        async def silent(text: str) -> None:
            scene._speak = spoken

        spoken, scene._speak = scene._speak, silent
        receipt = scene.reports.add("ready")
        await scene.at(9)
        assert scene.floor.holder is FloorHolder.LLM
        assert await receipt.until_settled() is ReportState.SAID
        assert receipt.history[2].reason == "its text was not spoken"

    play(story)
