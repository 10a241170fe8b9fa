"""The check of a job message that came from elsewhere."""

import pytest
from pipecat.bus.messages import BusJobCancelMessage, BusJobRequestMessage, BusJobResponseMessage
from pipecat.pipeline.job_context import JobStatus

from pipecat_jobs._protocol.messages import JobMessage, find_problem


def request() -> BusJobRequestMessage:
    return BusJobRequestMessage(source="a", target="b", job_id="1", job_name="read", payload={})


def response() -> BusJobResponseMessage:
    return BusJobResponseMessage(
        source="b", target="a", job_id="1", status=JobStatus.COMPLETED, response={}
    )


def cancel() -> BusJobCancelMessage:
    return BusJobCancelMessage(source="a", target="b", job_id="1", reason="late")


class Name(str):
    """A string of a class of its own."""


class Data(dict[str, object]):
    """A dict of a class of its own."""


@pytest.mark.parametrize("message", [request(), response(), cancel()])
def test_a_whole_message_has_no_problem(message: JobMessage):
    assert find_problem(message) is None


@pytest.mark.parametrize(
    ("message", "field", "value"),
    [
        (request(), "payload", None),
        (request(), "job_name", None),
        (request(), "payload", Data()),
        (request(), "source", Name("a")),
        (response(), "response", None),
        (response(), "status", "completed"),
        (cancel(), "reason", None),
    ],
)
def test_a_field_may_be_left_out_or_have_a_class_of_its_own(
    message: JobMessage, field: str, value: object
):
    setattr(message, field, value)
    assert find_problem(message) is None


@pytest.mark.parametrize(
    ("message", "field", "value", "problem"),
    [
        (request(), "source", None, "source is None, not a name"),
        (request(), "source", "", "source is '', not a name"),
        (request(), "source", Name(""), "source is '', not a name"),
        (response(), "job_id", "", "job_id is '', not a name"),
        (cancel(), "job_id", 1, "job_id is 1, not a name"),
        (request(), "payload", [], "payload is [], not a dict"),
        (request(), "job_name", 1, "job_name is 1, not a str"),
        (response(), "response", "done", "response is 'done', not a dict"),
        (response(), "status", "done", "status is 'done', not a JobStatus"),
        (response(), "status", None, "status is None, not a JobStatus"),
        (cancel(), "reason", 1, "reason is 1, not a str"),
    ],
)
def test_a_field_that_cannot_be_used_is_named(
    message: JobMessage, field: str, value: object, problem: str
):
    setattr(message, field, value)
    assert find_problem(message) == problem


def test_a_field_that_is_missing_is_named():
    message = request()
    del message.source
    assert find_problem(message) == "source is None, not a name"
