"""The receptionist for three restaurants: her workers, her tools and a whole conversation."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from support.snippets import ROOT

from examples.receptionist import __main__ as program
from examples.receptionist import bot
from examples.receptionist.bot import Booking, Bookings, Branch, Kitchen, Receptionist
from examples.receptionist.script import find_llm
from pipecat_jobs import (
    BaseWorker,
    CancelReason,
    JobError,
    JobRefusal,
    JobRefusedError,
    JobToolError,
)
from pipecat_jobs.testing import JobHarness

AT_EIGHT = "20:00"
#: So many dishes take longer than a test.
FEAST = ["soup"] * 600


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    # The scripted server is not behind an HTTP proxy; the change is undone after the test.
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")


@pytest.fixture
async def guest(job_harness: JobHarness, tmp_path: Path) -> BaseWorker:
    """A requester, beside the bookings and the kitchen."""
    guest = BaseWorker("guest")
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


async def test_a_second_order_for_a_table_is_refused_and_one_for_another_table_is_not(
    guest: BaseWorker,
):
    first = await guest.request_job("kitchen", order("north 1", FEAST), timeout=600)

    with pytest.raises(JobRefusedError) as refused:
        await guest.job("kitchen", order("north 1", ["fish"]), timeout=30)
    beside = await guest.job("kitchen", order("north 2", ["fish"]), timeout=30)

    outcome = refused.value.outcomes["kitchen"]
    assert (outcome.refusal, outcome.held_by) == (JobRefusal.BUSY, first)
    assert beside == "fish served at north 2"
    assert [job.id for job in guest.open_jobs] == [first]

    await guest.cancel_job_group(first, reason="the guest has left")
    assert await guest.job("kitchen", order("north 1", ["fish"]), timeout=30)


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
    async with find_llm() as llm:
        receptionist = Receptionist("receptionist", llm=llm, active=True)
        await job_harness.start(receptionist)

        said = await receptionist.hear("A table for five at 20:00, please. I am Ada.")

        assert said == "harbour 2 is yours at 20:00. Your booking has the number 7."
        found = {"answers": {"harbour": {"result": "harbour 2"}}, "missing": {"north": str(full)}}
        assert said.calls[0].result == found
        castle.assert_asked(guests=5, time=AT_EIGHT)
        book_table.assert_asked(guest="Ada", time=AT_EIGHT, table="harbour 2")
        await job_harness.end(receptionist)


async def test_the_whole_conversation(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    await program.main(str(tmp_path))

    lines = capsys.readouterr().out.splitlines()
    busy = "order was refused, because an earlier one for the same thing is still running"
    for said in (
        "harbour 2 is yours at 20:00. Your booking has the number 1.",
        "The kitchen is on it.",
        "One order is in the kitchen.",
        f"I am sorry: {busy}.",
        "The order is cancelled.",
        "Here you are: cake served at harbour 2.",
        "Only harbour 2, at 20:00.",
    ):
        assert f"receptionist: {said}" in lines


def test_the_program_runs_without_a_key_and_prints_no_errors():
    ran = subprocess.run(
        [sys.executable, "-m", "examples.receptionist"],
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
    assert "receptionist: Only harbour 2, at 20:00." in ran.stdout


def test_the_workers_and_the_bot_take_fewer_than_120_lines():
    assert len(Path(bot.__file__).read_text(encoding="utf-8").splitlines()) < 120
