"""``ask_requester()``: a handler asks the requester of its job, and waits for the answer."""

import asyncio
from collections.abc import AsyncIterator
from enum import Enum
from typing import Any, Literal

import pytest
from pipecat.bus.messages import BusJobRequestMessage
from pydantic import BaseModel
from support.workers import until

from pipecat_jobs import (
    BaseWorker,
    InvalidJobError,
    InvalidJobTypeError,
    JobCancelledError,
    JobGroup,
    JobInterceptor,
    JobLifeEvent,
    JobLifeEventKind,
    JobQuestion,
    JobQuestionError,
    JobTimeoutError,
    OpenJobState,
    job,
)
from pipecat_jobs.testing import JobHarness

pytestmark = [
    pytest.mark.every_bus,
    pytest.mark.not_on("pubsub", reason="Pipecat's network buses drop what an answer needs"),
]

SEAT = Literal["aisle", "window"]


class Address(BaseModel):
    street: str
    number: int


class Meal(Enum):
    FISH = "fish"


TYPES = {"str": str, "bool": bool, "seat": SEAT, "address": Address, "meal": Meal | None}


class Desk(BaseWorker):
    """Asks what the payload says, and responds with the answer or with why there is none."""

    def __init__(self, name: str = "desk") -> None:
        super().__init__(name)
        self.errors: list[JobQuestionError] = []
        self.cancelled = 0
        self.release = asyncio.Event()

    @job(name="ask")
    async def ask(self, message: BusJobRequestMessage) -> dict[str, Any]:
        asked = message.payload or {}
        try:
            answer = await self.ask_requester(
                asked.get("text", "Which?"),
                TYPES[asked.get("type", "str")],
                timeout=asked.get("timeout"),
            )
        except JobQuestionError as error:
            self.errors.append(error)
            return {"reason": error.reason}
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return {"answer": repr(answer)}

    @job(name="two")
    async def ask_two_at_once(self, message: BusJobRequestMessage) -> dict[str, Any]:
        meal, seat = await asyncio.gather(
            self.ask_requester("Fish?", bool), self.ask_requester("Aisle or window?", SEAT)
        )
        return {"fish": meal, "seat": seat}

    @job(name="short")
    async def give_up_soon(self, message: BusJobRequestMessage) -> dict[str, Any]:
        try:
            async with asyncio.timeout(0.05):
                await self.ask_requester("Hello?")
        except TimeoutError:
            return {"still there": await self.ask_requester("Still there?", bool)}
        return {}

    @job(name="beside")
    async def ask_beside(self, message: BusJobRequestMessage) -> dict[str, Any]:
        """Ask in a task, and end once the question was asked."""
        self.asking = asyncio.create_task(self.ask_requester("Are you there?"))
        await self.release.wait()
        return {}


class Host(BaseWorker):
    """Keeps the questions; the test answers them."""

    def __init__(self) -> None:
        super().__init__("host")
        self.questions: asyncio.Queue[JobQuestion] = asyncio.Queue()
        self.answers: dict[str, Any] = {}
        self.holds = False
        self.stopped = 0

    async def on_job_question(self, question: JobQuestion) -> object:
        self.questions.put_nowait(question)
        if self.holds:
            try:
                await asyncio.Event().wait()
            finally:
                self.stopped += 1
        answer = self.answers.get(question.text)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def next_question(self) -> JobQuestion:
        async with asyncio.timeout(100):
            return await self.questions.get()


class Keeper(JobInterceptor):
    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []

    def on_event(self, event: JobLifeEvent) -> None:
        if event.kind in (JobLifeEventKind.QUESTION, JobLifeEventKind.ANSWERED):
            self.events.append((event.kind.value, event.data))


class Stage:
    def __init__(self, harness: JobHarness):
        self.harness, self.host, self.desk, self.keeper = harness, Host(), Desk(), Keeper()
        self.host.add_job_interceptor(self.keeper)

    def ask(self, name: str = "ask", **payload: Any) -> asyncio.Task[Any]:
        options = {key: payload.pop(key) for key in ("label", "deadline") if key in payload}
        if "deadline" in options:
            options["timeout"] = options.pop("deadline")

        async def ask() -> Any:
            async with asyncio.timeout(100):
                return await self.host.job(
                    "desk", name=name, payload=payload, job_id="job-1", **options
                )

        return asyncio.create_task(ask())


@pytest.fixture
async def stage(job_harness: JobHarness) -> AsyncIterator[Stage]:
    stage = Stage(job_harness)
    await job_harness.start(stage.host, stage.desk)
    yield stage
    await job_harness.settle()
    assert job_harness.left_behind() == []


# -- answers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "given", "answer"),
    [
        ("str", "the blue one", "'the blue one'"),
        ("bool", "yes", "True"),
        ("bool", False, "False"),
        ("seat", "aisle", "'aisle'"),
        ("address", {"street": "Elm", "number": "7"}, "Address(street='Elm', number=7)"),
        ("address", Address(street="Elm", number=7), "Address(street='Elm', number=7)"),
        ("meal", Meal.FISH, "<Meal.FISH: 'fish'>"),
    ],
)
async def test_what_the_hook_returns_is_the_answer(
    stage: Stage, kind: str, given: object, answer: str
):
    stage.host.answers["Which?"] = given
    assert await stage.ask(type=kind) == {"answer": answer}


async def test_a_question_says_what_is_asked_and_by_whom(stage: Stage):
    asking = stage.ask(text="Aisle or window?", type="seat", label="Trip to Rome")
    question = await stage.host.next_question()
    assert question.text == "Aisle or window?"
    assert question.schema == {"enum": ["aisle", "window"], "type": "string"}
    assert (question.job_id, question.worker, question.job_name) == ("job-1", "desk", "ask")
    assert (question.label, question.problem) == ("Trip to Rome", None)
    assert question.is_open
    await question.answer("window")
    assert not question.is_open
    assert await asking == {"answer": "'window'"}


async def test_none_is_an_answer_that_is_given_by_the_method(stage: Stage):
    asking = stage.ask(type="meal")
    await (await stage.host.next_question()).answer(None)
    assert await asking == {"answer": "None"}


async def test_an_answer_that_does_not_fit_is_asked_again_with_the_problem(stage: Stage):
    asking = stage.ask(type="seat")
    first = await stage.host.next_question()
    await first.answer("the roof")
    second = await stage.host.next_question()
    assert second.problem is not None
    assert "'aisle' or 'window'" in second.problem
    assert not first.is_open
    await second.answer("aisle")
    assert await asking == {"answer": "'aisle'"}


async def test_a_requester_that_always_answers_wrong_is_not_asked_for_ever(stage: Stage):
    stage.host.answers["Which?"] = "the roof"
    reason = (await stage.ask(type="seat"))["reason"]
    assert reason.startswith("5 answers did not fit")
    assert stage.host.questions.qsize() == 5


async def test_two_open_questions_do_not_cross(stage: Stage):
    asking = stage.ask("two")
    questions = [await stage.host.next_question() for _ in range(2)]
    fish, seat = sorted(questions, key=lambda question: question.text, reverse=True)
    await seat.answer("aisle")
    await fish.answer(True)
    assert await asking == {"fish": True, "seat": "aisle"}


# -- no answer --------------------------------------------------------------------------------


async def test_a_refused_question_raises_with_the_reason(stage: Stage):
    asking = stage.ask(text="Charge 40 euros?", type="bool")
    question = await stage.host.next_question()
    await question.refuse("the user hung up")
    assert await asking == {"reason": "the user hung up"}
    (error,) = stage.desk.errors
    assert (error.text, error.reason) == ("Charge 40 euros?", "the user hung up")
    with pytest.raises(InvalidJobError, match="not open"):
        await question.answer(True)


async def test_a_hook_that_raises_refuses(stage: Stage):
    stage.host.answers["Which?"] = ValueError("no idea")
    assert await stage.ask() == {"reason": "on_job_question() of worker 'host' raised ValueError"}


async def test_a_question_that_is_not_answered_in_time_raises_and_closes(stage: Stage):
    stage.host.holds = True
    assert await stage.ask(timeout=0.05) == {"reason": "none came within 0.05 s"}
    question = await stage.host.next_question()
    await stage.harness.settle()
    assert not question.is_open
    assert stage.host.stopped == 1


async def test_a_handler_that_stops_waiting_withdraws_its_question(stage: Stage):
    asking = stage.ask("short")
    first, second = [await stage.host.next_question() for _ in range(2)]
    await stage.harness.settle()
    assert not first.is_open
    assert second.is_open
    await second.answer(True)
    assert await asking == {"still there": True}


async def test_a_cancel_of_the_job_ends_the_wait_and_the_hook(stage: Stage):
    stage.host.holds = True
    asking = stage.ask()
    question = await stage.host.next_question()
    await stage.host.cancel_job_group("job-1", reason="never mind")
    with pytest.raises(JobCancelledError):
        await asking
    assert not question.is_open
    await stage.harness.settle()
    assert stage.desk.cancelled == 1
    assert stage.host.stopped == 1


@pytest.mark.parametrize("refused", [False, True])
async def test_an_answer_of_other_code_ends_the_hook(stage: Stage, refused: bool):
    stage.host.holds = True
    asking = stage.ask()
    question = await stage.host.next_question()
    await (question.refuse("no") if refused else question.answer("yes"))
    assert await asking == ({"reason": "no"} if refused else {"answer": "'yes'"})
    await until(lambda: stage.host.stopped == 1)


async def test_the_deadline_of_the_job_ends_the_wait(stage: Stage):
    asking = stage.ask(deadline=0.2)
    question = await stage.host.next_question()
    with pytest.raises(JobTimeoutError):
        await asking
    assert not question.is_open


async def test_a_question_is_over_when_the_job_ends_without_its_answer(stage: Stage):
    asking = stage.ask("beside")
    question = await stage.host.next_question()
    stage.desk.release.set()
    await asking
    assert not question.is_open
    async with asyncio.timeout(100):
        with pytest.raises(JobQuestionError, match="the job has ended"):
            await stage.desk.asking


async def test_a_worker_without_the_hook_refuses_at_once(job_harness: JobHarness):
    owner, desk = BaseWorker("owner"), Desk()
    await job_harness.start(owner, desk)
    async with asyncio.timeout(100):
        response = await owner.job("desk", name="ask")
    assert "write on_job_question()" in response["reason"]


# -- bad input --------------------------------------------------------------------------------


async def test_bad_arguments_are_refused_before_anything_is_asked(stage: Stage):
    desk = stage.desk
    with pytest.raises(InvalidJobError, match="outside of an open job"):
        await desk.ask_requester("Why?")
    with pytest.raises(InvalidJobTypeError, match="text"):
        await desk.ask_requester(7)  # type: ignore[arg-type]
    with pytest.raises(InvalidJobError, match="timeout"):
        await desk.ask_requester("Why?", timeout=-1)
    with pytest.raises(InvalidJobTypeError, match="answer_type"):
        await desk.ask_requester("Why?", asyncio.Event)


async def test_an_answer_that_is_not_json_is_refused_and_may_be_given_again(stage: Stage):
    asking = stage.ask()
    question = await stage.host.next_question()
    with pytest.raises(InvalidJobTypeError, match="give an answer"):
        await question.answer(asyncio.Event())
    await question.answer("better")
    assert await asking == {"answer": "'better'"}


# -- what is seen -----------------------------------------------------------------------------


async def test_the_job_waits_for_input_at_both_sides(stage: Stage):
    asking = stage.ask()
    question = await stage.host.next_question()
    assert [each.state for each in stage.host.open_jobs] == [OpenJobState.WAITING_FOR_INPUT]
    assert [each.state for each in stage.desk.open_jobs] == [OpenJobState.WAITING_FOR_INPUT]
    await question.answer("it")
    assert [each.state for each in stage.host.open_jobs] == [OpenJobState.SENT]
    await asking


async def test_interceptors_get_the_question_and_the_answer(stage: Stage):
    asking = stage.ask(type="bool")
    question = await stage.host.next_question()
    await question.answer("perhaps")
    again = await stage.host.next_question()
    await again.refuse("enough")
    await asking
    schema = {"type": "boolean"}
    assert stage.keeper.events == [
        ("question", {"text": "Which?", "schema": schema, "problem": None}),
        ("answered", {"text": "Which?", "answer": "perhaps"}),
        ("question", {"text": "Which?", "schema": schema, "problem": again.problem}),
        ("answered", {"text": "Which?", "refused": "enough"}),
    ]


async def test_nothing_is_kept_of_a_question_that_was_answered(stage: Stage):
    asking = stage.ask("two")
    fish, seat = [await stage.host.next_question() for _ in range(2)]
    group = stage.host.job_groups["job-1"]
    assert isinstance(group, JobGroup)
    exchange = group.handles["desk"].exchange
    assert exchange is not None
    await fish.answer(True)
    await seat.answer("aisle")
    assert exchange.questions == {}
    await until(asking.done)
