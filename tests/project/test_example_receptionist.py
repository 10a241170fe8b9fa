"""The receptionist for three restaurants: her workers, her tools and two whole conversations."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair
from support.snippets import ROOT

from examples.receptionist import bot, text
from examples.receptionist.bot import Booking, Bookings, Branch, Kitchen
from examples.receptionist.script import GUEST, find_llm
from examples.receptionist.stage import make_receptionist
from examples.receptionist.voice import speak
from pipecat_jobs import (
    BaseWorker,
    CancelReason,
    JobError,
    JobQuestion,
    JobToolError,
)
from pipecat_jobs.testing import JobHarness, run_virtual
from pipecat_jobs.testing.voice import ScriptedLLM

AT_EIGHT = "20:00"
#: So many dishes take longer than a test.
FEAST = ["soup"] * 600


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


class Guest(BaseWorker):
    """A requester who likes sauce."""

    def __init__(self) -> None:
        super().__init__("guest")
        self.asked = asyncio.Queue[str]()

    async def on_job_question(self, question: JobQuestion) -> object:
        self.asked.put_nowait(question.text)
        return "with sauce"


@pytest.fixture
async def guest(job_harness: JobHarness, tmp_path: Path) -> Guest:
    """A requester, beside the bookings and the kitchen."""
    guest = Guest()
    await job_harness.start(guest, Bookings(tmp_path / "bookings.db"), Kitchen("kitchen"))
    return guest


def book(guest: BaseWorker, name: str, table: str):
    request = Bookings.book_table.request(guest=name, time=AT_EIGHT, table=table)
    return guest.job("bookings", request, timeout=30)


def order(table: str, dishes: list[str]):
    return Kitchen.order.request(table=table, dishes=dishes)


async def test_bookings_are_kept_and_found_again(tmp_path: Path):
    path = tmp_path / "bookings.db"
    async with JobHarness() as harness:
        guest = BaseWorker("guest")
        await harness.start(guest, Bookings(path))
        booked = await book(guest, "Ada", "north 1")
        await book(guest, "Bob", "north 2")

    async with JobHarness() as harness:
        guest = BaseWorker("guest")
        await harness.start(guest, Bookings(path))
        request = Bookings.find_bookings.request(guest="Ada")
        found = await guest.job("bookings", request, timeout=30)

    assert booked == Booking(1, "Ada", AT_EIGHT, "north 1")
    assert found == [booked]


async def test_one_of_two_guests_gets_a_table_that_both_want(guest: BaseWorker):
    both = (book(guest, name, "north 1") for name in ("Ada", "Bob"))
    booked = await asyncio.gather(*both, return_exceptions=True)

    assert {type(result) for result in booked} == {JobError, Booking}
    assert "north 1 has just been booked" in str(booked)


async def test_the_first_branch_wins_and_the_search_of_the_others_is_cancelled(
    job_harness: JobHarness, guest: BaseWorker
):
    slow = [Branch(name, {f"{name} 1": 6}, takes=3600) for name in ("north", "castle")]
    await job_harness.start(*slow, Branch("harbour", {"harbour 1": 6}))
    request = Branch.find_table.request(guests=5, time=AT_EIGHT)

    async with guest.job_group(
        "north", "harbour", "castle", request=request, need="first", timeout=30
    ) as group:
        pass

    assert group.responses == {"harbour": "harbour 1"}
    for name in ("north", "castle"):
        assert group.outcomes[name].cancel_reason is CancelReason.NOT_NEEDED


async def test_a_branch_without_a_free_table_does_not_win(
    job_harness: JobHarness, guest: BaseWorker
):
    await book(guest, "Bob", "north 2")
    tables = {"north 1": 2, "north 2": 6}
    later = Branch("harbour", {"harbour 1": 2, "harbour 2": 6}, takes=0.1)
    await job_harness.start(Branch("north", tables), later)
    request = Branch.find_table.request(guests=5, time=AT_EIGHT)

    found = await guest.job_group("north", "harbour", request=request, need="first", timeout=30)

    assert found == {"harbour": "harbour 2"}


async def test_a_branch_asks_which_tables_are_booked(job_harness: JobHarness):
    guest = BaseWorker("guest")
    await job_harness.start(guest, Branch("north", {"north 1": 4, "north 2": 4}))
    booked = await job_harness.mock_job("bookings", "find_booked_tables", returns=["north 1"])

    request = Branch.find_table.request(guests=2, time=AT_EIGHT)
    assert await guest.job("north", request, timeout=30) == "north 2"

    booked.assert_asked(time=AT_EIGHT)


@pytest.mark.not_on("pubsub", reason="Pipecat's network buses drop what a steer is attached to")
async def test_a_second_order_for_a_table_is_added_to_the_first_and_one_for_another_is_not(
    guest: Guest,
):
    first = await guest.request_job("kitchen", order("north 1", ["duck", *FEAST]), timeout=600)

    beside = await guest.job("kitchen", order("north 2", ["fish"]), timeout=30)
    added = await guest.job("kitchen", order("north 1", ["fish"]), timeout=30)

    assert beside == {"served": "fish", "table": "north 2"}
    assert added == {"steered": first}
    assert [job.id for job in guest.open_jobs] == [first]

    await guest.cancel_job_group(first, reason="the guest has left")
    assert await guest.job("kitchen", order("north 1", ["fish"]), timeout=30)


@pytest.mark.not_on("pubsub", reason="Pipecat's network buses drop what an answer needs")
async def test_the_kitchen_asks_how_the_duck_is_to_be(guest: Guest):
    served = await guest.job("kitchen", order("north 1", ["duck", "soup"]), timeout=30)

    assert served["served"] == "duck with sauce and soup"
    assert await guest.asked.get() == "Is the duck with or without sauce?"


@pytest.mark.not_on("pubsub", reason="requests that are sent at once arrive in any order")
async def test_the_receptionist_books_the_first_table_that_is_found(job_harness: JobHarness):
    never = asyncio.Event()

    async def look(payload: object) -> str:
        await never.wait()
        return "castle 1"

    full = JobToolError("no free table")
    await job_harness.mock_job("north", "find_table", raises=full)
    await job_harness.mock_job("harbour", "find_table", returns="harbour 2")
    castle = await job_harness.mock_job("castle", "find_table", returns=look)
    booking = Booking(7, "Ada", AT_EIGHT, "harbour 2")
    book_table = await job_harness.mock_job("bookings", "book_table", returns=booking)
    context = LLMContextAggregatorPair(LLMContext())
    receptionist = make_receptionist(find_llm(), context)
    await job_harness.start(receptionist)

    said = await receptionist.hear("A table for five at 20:00, please. I am Ada.")

    assert said.strip() == "harbour 2 is yours at 20:00. Your booking has the number 7."
    found = {"answers": {"harbour": {"result": "harbour 2"}}, "missing": {"north": str(full)}}
    assert said.calls[0].result == found
    castle.assert_asked(guests=5, time=AT_EIGHT)
    book_table.assert_asked(guest="Ada", time=AT_EIGHT, table="harbour 2")
    await job_harness.end(receptionist)


def test_the_whole_conversation_in_text(capsys: pytest.CaptureFixture[str]):
    run_virtual(text.write())

    rest = iter(capsys.readouterr().out.splitlines())
    for said in (
        "harbour 2 is yours at 20:00. Your booking has the number 1.",
        "I ask the kitchen.",
        "Red wine is on its way to harbour 2.",
        "The duck takes 40 minutes.",
        "The kitchen asks: Is the duck with or without sauce?",
        "The order is in the kitchen.",
        "The kitchen adds it.",
        "Here you are: duck with sauce and soup and cake.",
        "The order is cancelled.",
        "Only harbour 2, at 20:00.",
    ):
        assert f"receptionist: {said}" in rest, f"{said} is missing, or out of order"


def test_the_guest_goes_on_when_the_llm_asks_for_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(text, "find_llm", lambda: ScriptedLLM(lambda messages: "Well."))

    run_virtual(text.write())

    assert f"guest: {GUEST[-1].text}" in capsys.readouterr().out.splitlines()


def test_what_the_guest_talks_over_is_said_once_to_its_end():
    transcript = [line[6:] for line in run_virtual(speak())]

    told = "receptionist: The duck takes 40 minutes."
    cut = [line for line in transcript if line.endswith("--")]
    assert len(cut) == 1
    assert told.startswith(cut[0].removesuffix(" --"))
    assert transcript.count(told) == 1
    in_order = (
        "guest: A bottle of red wine to harbour 2, please.",
        "    [find_cooking_time: waiting]",
        cut[0],
        "    [find_cooking_time: interrupted]",
        "receptionist: Water is on its way to harbour 2.",
        told,
        "    [find_cooking_time: said]",
        "receptionist: The kitchen asks: Is the duck with or without sauce?",
        "guest: With sauce, please.",
        "receptionist: Here you are: duck with sauce and soup.",
    )
    rest = iter(transcript)
    for line in in_order:
        assert line in rest, f"{line} is missing, or out of order"


@pytest.mark.parametrize(
    ("options", "last"),
    [
        pytest.param((), "receptionist: Only harbour 2, at 20:00.", marks=pytest.mark.slow),
        (("--voice",), "receptionist: Here you are: duck with sauce and soup."),
    ],
    ids=["text", "voice"],
)
def test_the_program_runs_without_a_key_and_prints_no_errors(options: tuple[str, ...], last: str):
    ran = subprocess.run(
        [sys.executable, "-m", "examples.receptionist", *options],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        timeout=250,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    # Pipecat 1.8 downloads data for NLTK, which prints a message without a network.
    errors = ran.stderr.splitlines()
    assert [line for line in errors if not line.startswith("[nltk_data]")] == []
    assert last in ran.stdout


def test_the_workers_and_the_bot_take_fewer_than_150_lines():
    assert len(Path(bot.__file__).read_text(encoding="utf-8").splitlines()) < 150
