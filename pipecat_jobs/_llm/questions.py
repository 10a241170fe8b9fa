"""Questions of the workers of jobs that the user of this LLM's conversation answers."""

import asyncio
from collections.abc import Sequence
from itertools import count
from typing import Any, cast

from pipecat.processors.aggregators.llm_context import NotGiven
from pipecat.services.llm_service import FunctionCallParams

from pipecat_jobs._llm.context_value import to_context_value
from pipecat_jobs._llm.json_schema import Schema, tidy_schema
from pipecat_jobs._pipecat.schemas import FunctionSchema, ToolsSchema, tool_options
from pipecat_jobs._worker.mixin import WorkerJobs
from pipecat_jobs.conversation.receipt import Receipt
from pipecat_jobs.conversation.reports import Reports
from pipecat_jobs.conversation.states import ReportState
from pipecat_jobs.errors import InvalidJobTypeError
from pipecat_jobs.questions import JobQuestion

_NEVER_MIND = "never_mind"
#: The ends of a report after which the user has not heard the question.
_UNHEARD = frozenset({ReportState.EXPIRED, ReportState.DROPPED})

#: Unique, because the questions of several workers may be open in one conversation.
_numbers = count(1)


class AnswerTool(FunctionSchema):
    """The tool with which the LLM passes on the user's answer to one question."""

    def __init__(self, question: JobQuestion, worker: WorkerJobs, home: "UserQuestions"):
        schema = dict(question.schema)
        definitions: dict[str, Schema] = schema.pop("$defs", {})
        super().__init__(
            name=f"answer_question_{next(_numbers)}",
            description=(
                f"Pass on the user's answer to the question: {question.text} Call it once the "
                "user has answered in their own words. Never answer for the user."
            ),
            properties={
                "answer": tidy_schema(schema, definitions, _refuse),
                _NEVER_MIND: {
                    "type": "boolean",
                    "description": "True if the user does not want to answer, and wants to call "
                    "off what the question is about.",
                },
            },
            required=[],
            handler=self,
        )
        self.question = question
        self.answered = asyncio.Event()
        self.home = home
        """The questions of the conversation in which the user answers it."""
        self._worker = worker
        # The attributes that Pipecat reads from a handler that is a function.
        self.__name__ = self.name
        tool_options()(self)

    async def __call__(self, params: FunctionCallParams) -> None:
        """Pass the answer on. Pipecat calls this."""
        await params.result_callback(await self._take(dict(params.arguments)))

    async def _take(self, given: dict[str, Any]) -> dict[str, str]:
        question = self.question
        if not question.is_open:
            return {"status": "The question is not open any more; nothing was passed on."}
        if given.get(_NEVER_MIND) is True:
            reason = "the user does not want to answer its question"
            await self._worker.cancel_job_group(question.job_id, reason=reason)
            return {"status": "It was called off."}
        if "answer" not in given:
            return {"error": "'answer' is missing. Correct the arguments and retry."}
        await question.answer(to_context_value(given["answer"]))
        self.answered.set()
        return {"status": "The answer was passed on."}


def _refuse(name: str) -> InvalidJobTypeError:
    return InvalidJobTypeError(f"the answer has the type {name}, which contains itself")


class UserQuestions:
    """The questions that are open in a conversation."""

    def __init__(self, worker: WorkerJobs, reports: Reports):
        self._worker = worker
        self._reports = reports
        self._open: dict[AnswerTool, Receipt] = {}

    async def ask(self, question: JobQuestion) -> None:
        """Have the LLM ask the user, and return once the answer was passed on.

        It is cancelled when the question closes without an answer.
        """
        tool = AnswerTool(question, self._worker, self)
        content = {
            "question": question.text,
            "about": question.label or question.job_name or question.worker,
            "what_to_do": "Ask the user this question. Once the user has answered it, and not "
            f"before, pass the answer on with {tool.name}.",
        }
        if question.problem is not None:
            content["last_answer_did_not_fit"] = question.problem
        receipt = self._reports.add(to_context_value(content))
        self._open[tool] = receipt
        said = self._worker.create_task(receipt.until_settled(), "question_said")
        try:
            await self._until_answered(tool, receipt, said)
        finally:
            tool.home._close(tool)
            await self._worker.cancel_task(said)

    def _close(self, tool: AnswerTool) -> None:
        receipt = self._open.pop(tool, None)
        if receipt is not None:
            self._reports.withdraw(receipt, "the question is closed")

    async def _until_answered(
        self, tool: AnswerTool, receipt: Receipt, said: asyncio.Task[ReportState]
    ) -> None:
        answered = self._worker.create_task(tool.answered.wait(), "question_answered")
        try:
            await asyncio.wait({answered, said}, return_when=asyncio.FIRST_COMPLETED)
            if receipt.state in _UNHEARD and tool.question.is_open:
                await tool.question.refuse(
                    f"the user could not be asked: {receipt.history[-1].reason}"
                )
                return
            await answered
        finally:
            await self._worker.cancel_task(answered)

    @property
    def any_open(self) -> bool:
        """Whether a question has no answer yet."""
        return bool(self._open)

    def adopt(self, other: "UserQuestions") -> None:
        """Take over the questions of a worker that no longer holds the conversation."""
        for tool in other._open:
            tool.home = self
        self._open |= other._open
        other._open.clear()

    async def refuse_all(self, reason: str) -> None:
        """Refuse every question that is open."""
        for tool in list(self._open):
            self._close(tool)
            if tool.question.is_open:
                await tool.question.refuse(reason)

    def change_tools(self, tools: ToolsSchema | NotGiven) -> ToolsSchema | NotGiven:
        """Return the tools of a context with one for each question that the LLM has."""
        standard = () if isinstance(tools, NotGiven) else _list_tools(tools)
        others = [tool for tool in standard if not isinstance(tool, AnswerTool)]
        own = [
            tool for tool, receipt in self._open.items() if receipt.state is not ReportState.WAITING
        ]
        if len(others) == len(standard) and not own:
            return tools
        custom = None if isinstance(tools, NotGiven) else tools.custom_tools
        return ToolsSchema(standard_tools=[*others, *own], custom_tools=cast("Any", custom))


def _list_tools(tools: ToolsSchema) -> Sequence[Any]:
    """List tools as they were given: the schema of a function cannot be called."""
    functions = {wrapper.name: wrapper.function for wrapper in tools.direct_functions}
    return [functions.get(tool.name, tool) for tool in tools.standard_tools]
