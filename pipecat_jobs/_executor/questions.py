"""The questions that a handler asks the requester of its job, and the check of each answer."""

import asyncio
import uuid
from typing import Any

from pydantic import PydanticUserError, TypeAdapter, ValidationError

from pipecat_jobs._executor.exchanges import Exchanges
from pipecat_jobs._executor.execution import Execution, find_current_job
from pipecat_jobs._executor.responses import Responses
from pipecat_jobs._protocol.checks import check_text
from pipecat_jobs._protocol.deadline import check_timeout
from pipecat_jobs._protocol.exchange import QuestionNote
from pipecat_jobs._protocol.headers import takes_questions
from pipecat_jobs._protocol.requests import list_problems
from pipecat_jobs._protocol.text import shorten
from pipecat_jobs.errors import InvalidJobError, InvalidJobTypeError, JobQuestionError
from pipecat_jobs.outcomes import JobData
from pipecat_jobs.questions import JobQuestion

#: How many answers that do not fit a question may have. Without a bound, code that gives the same
#: wrong answer every time would be asked for ever.
_MOST_ANSWERS = 5


class Questions:
    """Asks the requesters of a worker's jobs."""

    def __init__(self, responses: Responses, exchanges: Exchanges):
        self._responses = responses
        self._exchanges = exchanges

    async def ask(self, text: str, answer_type: Any, timeout: float | None) -> Any:
        """Ask the requester of the running job, until an answer fits the type."""
        check_text("text", text, "the question, as a string")
        seconds = check_timeout("timeout", timeout)
        adapter, schema = _read_type(answer_type)
        execution = find_current_job()
        if execution is None or self._responses.get(execution.request.job_id) is not execution:
            raise InvalidJobError(
                "ask_requester() was called outside of an open job of this worker; call it in a "
                "method with @job, or in on_job_request()"
            )
        scope = asyncio.timeout(seconds)
        try:
            async with scope:
                return await self._ask_until_it_fits(execution, text, adapter, schema)
        except TimeoutError as error:
            if not scope.expired():
                raise
            raise JobQuestionError(text, f"none came within {seconds:g} s") from error

    async def _ask_until_it_fits(
        self, execution: Execution, text: str, adapter: TypeAdapter[Any], schema: JobData
    ) -> Any:
        problem = None
        for _ in range(_MOST_ANSWERS):
            value = await self._ask_once(execution, text, schema, problem)
            try:
                return adapter.validate_python(value)
            except ValidationError as error:
                problem = "; ".join(list_problems(error))
        raise JobQuestionError(text, f"{_MOST_ANSWERS} answers did not fit; the last: {problem}")

    async def _ask_once(
        self, execution: Execution, text: str, schema: JobData, problem: str | None
    ) -> object:
        if not takes_questions(execution.request):
            raise JobQuestionError(
                text,
                f"'{execution.request.source}', which asked for the job, cannot answer: it is a "
                "plain Pipecat worker, or the bus drops what pipecat-jobs attaches to a message; "
                "import its class from pipecat_jobs, and use RoutedBus or RedisStreamsBus",
            )
        note = QuestionNote(uuid.uuid4().hex, text, schema, problem)
        answer = await self._exchanges.ask(execution, note)
        if answer.refused is not None:
            raise JobQuestionError(text, answer.refused)
        return answer.value

    async def pass_on(self, execution: Execution, question: JobQuestion) -> None:
        """Ask the requester of an outer job a question that came from an inner one."""
        try:
            value = await self._ask_once(
                execution, question.text, dict(question.schema), question.problem
            )
        except JobQuestionError as error:
            if question.is_open:
                await question.refuse(error.reason)
            return
        if question.is_open:
            await question.answer(value)


def _read_type(answer_type: Any) -> tuple[TypeAdapter[Any], JobData]:
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(answer_type)
        return adapter, adapter.json_schema()
    except PydanticUserError as error:
        raise InvalidJobTypeError(
            f"answer_type is {shorten(answer_type)}; give a type that pydantic can validate and "
            "JSON can express, e.g. str, bool, a Literal or a model"
        ) from error
