"""A job tool on a worker without an LLM is refused where the class is defined."""

from typing import Any

import pytest
from pipecat.workers.base_worker import BaseWorker as PipecatBaseWorker

from pipecat_jobs import (
    BaseWorker,
    InvalidJobTypeError,
    JobsMixin,
    LLMContextWorker,
    LLMWorker,
    PipelineWorker,
    job_tool,
)


@job_tool("library")
async def find_book(self: Any, title: str):
    """Find a book."""
    return {"title": title}


class Shared:
    """Tools of several workers."""

    find_book = find_book


@pytest.mark.parametrize(
    "bases",
    [
        (BaseWorker,),
        (Shared, BaseWorker),
        (JobsMixin, PipecatBaseWorker),
        (Shared, JobsMixin),
        (JobsMixin, Shared),
    ],
)
def test_a_worker_without_an_llm_is_an_error_that_says_what_to_write(bases: tuple[type, ...]):
    body = {} if Shared in bases else {"find_book": find_book}

    with pytest.raises(InvalidJobTypeError) as caught:
        type(JobsMixin)("Desk", bases, body)

    message = str(caught.value)
    assert message.startswith("Desk.find_book() has @job_tool, but a Desk has no LLM")
    assert "the LLMWorker or LLMContextWorker whose LLM is to call it" in message
    assert "use @job." in message


@pytest.mark.parametrize("base", [LLMWorker, LLMContextWorker, PipelineWorker])
def test_a_worker_class_that_may_have_an_llm_is_accepted(base: type):
    mine = type(JobsMixin)("Host", (base,), {"find_book": find_book})
    shared = type(JobsMixin)("Host", (Shared, base), {})

    assert mine.find_book is shared.find_book


def test_a_tool_that_a_subclass_removes_is_not_refused():
    assert type(JobsMixin)("Desk", (Shared, BaseWorker), {"find_book": None}).find_book is None
