"""Asking back: a question of the worker of an open job, which its requester answers."""

from collections.abc import Mapping
from typing import Any, Protocol

from pydantic_core import PydanticSerializationError, to_jsonable_python

from pipecat_jobs._protocol.checks import check_text
from pipecat_jobs._protocol.text import shorten
from pipecat_jobs.errors import InvalidJobError, InvalidJobTypeError


class QuestionReply(Protocol):
    """Takes the answer of one question to its worker."""

    @property
    def is_open(self) -> bool:
        """Whether the worker waits for the answer."""
        ...

    async def send(self, value: object, refused: str | None) -> None:
        """Send the answer, or why there is none."""
        ...


class JobQuestion:
    """A question that the worker of an open job asks: what ``on_job_question()`` gets.

    Parameters:
        text: The question, for people.
        schema: The JSON schema of the answer, e.g. ``{"type": "boolean"}``.
        job_id: The id of the job.
        worker: Name of the worker that asks.
        job_name: The name of the job, or None for a job of ``on_job_request``.
        label: The title of the job for people, or None.
        problem: Why the last answer did not fit, if the worker asks again; None the first time.

    Example::

        class Host(BaseWorker):
            async def on_job_question(self, question):
                if question.problem is not None:
                    await question.refuse("the user does not know")
                elif question.schema.get("type") == "boolean":
                    return True
                else:
                    self.asked = question  # answered later, with question.answer()
    """

    __slots__ = (
        "_reply",
        "job_id",
        "job_name",
        "label",
        "problem",
        "schema",
        "text",
        "worker",
    )

    def __init__(
        self,
        *,
        text: str,
        schema: Mapping[str, Any],
        job_id: str,
        worker: str,
        job_name: str | None,
        label: str | None,
        problem: str | None,
        reply: QuestionReply,
    ):
        self.text = text
        self.schema = schema
        self.job_id = job_id
        self.worker = worker
        self.job_name = job_name
        self.label = label
        self.problem = problem
        self._reply = reply

    @property
    def is_open(self) -> bool:
        """Whether the worker still waits: it has no answer and no refusal, and its job is open."""
        return self._reply.is_open

    async def answer(self, value: object) -> None:
        """Answer the question.

        The worker checks the answer against the type that it wants. One that does not fit makes it
        ask again: a new question, with a :attr:`problem`.

        Args:
            value: The answer. A model, a dataclass, an enum or a date travels as plain JSON types.

        Raises:
            InvalidJobError: If the question is not open.
            InvalidJobTypeError: If the value cannot be written as JSON.

        Example::

            class Host(BaseWorker):
                async def on_job_question(self, question):
                    self.asked = question

                async def note_answer(self, words):
                    if self.asked.is_open:
                        await self.asked.answer(words)
        """
        try:
            plain: object = to_jsonable_python(value)
        except PydanticSerializationError as error:
            raise InvalidJobTypeError(
                f"value is {shorten(value)}; give an answer that JSON can express"
            ) from error
        self._check_open("answer()")
        await self._reply.send(plain, None)

    async def refuse(self, reason: str) -> None:
        """Refuse the question: its handler gets a ``JobQuestionError``.

        Args:
            reason: Why there is no answer, as text for people.

        Raises:
            InvalidJobError: If the question is not open, or the reason is empty.
            InvalidJobTypeError: If the reason is not a string.
        """
        why = check_text("reason", reason, "why there is no answer, as text for people")
        self._check_open("refuse()")
        await self._reply.send(None, why)

    def _check_open(self, method: str) -> None:
        if not self.is_open:
            raise InvalidJobError(
                f"{method} was called for a question of job '{self.job_id}' that is not open: it "
                "was answered or refused, or its worker waits no more; look at is_open before"
            )

    def __repr__(self) -> str:
        return f"JobQuestion({self.text!r}, worker={self.worker!r}, job_id={self.job_id!r})"
