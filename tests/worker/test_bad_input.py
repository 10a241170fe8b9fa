"""Bad input is refused where it enters, and the error says what to write instead."""

import math

import pytest
from pipecat.pipeline.job_context import JobParams as PipecatJobParams
from support.workers import Requester, Responder

from pipecat_jobs import InvalidJobError, InvalidJobTypeError, JobParams
from pipecat_jobs.testing import JobHarness

pytestmark = pytest.mark.every_bus

WRONG = [
    ({"payload": "text"}, "payload is 'text'; give a dict"),
    ({"payload": [1]}, r"payload is \[1\]; give a dict"),
    ({"name": 7}, "name is 7; give the name of a @job handler"),
    ({"name": ""}, "name is empty"),
    ({"timeout": -1}, "timeout is -1; give zero or more"),
    ({"timeout": math.nan}, "timeout is nan; give zero or more"),
    ({"timeout": "30"}, "timeout is '30'; give seconds as a number"),
    ({"timeout": True}, "timeout is True; give seconds"),
    ({"label": 7}, "label is 7; give a title"),
    ({"job_id": 7}, "job_id is 7; give a string"),
    ({"job_id": ""}, "job_id is empty"),
    ({"cancellable": "no"}, "cancellable is 'no'; give True or False"),
    ({"unread_limit": -1}, "unread_limit is -1; give a number of chunks"),
    ({"unread_limit": True}, "unread_limit is True; give a number of chunks"),
    ({"unread_limit": 1.5}, "unread_limit is 1.5; give a number of chunks"),
    ({"latest_update_only": 1}, "latest_update_only is 1; give True or False"),
]


@pytest.mark.parametrize(("keywords", "says"), WRONG)
async def test_every_way_to_ask_refuses_bad_input_and_the_worker_goes_on(
    job_harness: JobHarness, keywords: dict, says: str
):
    requester = Requester()
    await job_harness.start(requester, Responder())
    with pytest.raises(InvalidJobError, match=says):
        requester.job("responder", **keywords)
    with pytest.raises(InvalidJobError, match=says):
        requester.job_group("responder", **keywords)
    with pytest.raises(InvalidJobError, match=says):
        await requester.request_job("responder", **keywords)
    with pytest.raises(InvalidJobError, match=says):
        await requester.request_job_group("responder", **keywords)
    with pytest.raises(InvalidJobError, match=says):
        await requester.create_job_group_and_request_job(["responder"], **keywords)
    assert (await requester.ask("responder", "echo"))["from"] == "responder"


@pytest.mark.parametrize("timeout", [-1.0, math.nan])
def test_a_params_object_is_also_checked(timeout: float):
    for params in (PipecatJobParams(timeout=timeout), JobParams(timeout=timeout)):
        with pytest.raises(InvalidJobError, match="zero or more"):
            Requester().job("responder", params=params)


@pytest.mark.parametrize("name", [7, None, Responder])
def test_a_worker_name_that_is_not_a_str_is_a_type_error(name: object):
    with pytest.raises(TypeError, match="give the worker's name as a str"):
        Requester().job(name)  # type: ignore[arg-type]
    with pytest.raises(InvalidJobTypeError, match="give the worker's name as a str"):
        Requester().job_group("fine", name)  # type: ignore[arg-type]


def test_an_empty_worker_name_is_refused():
    with pytest.raises(InvalidJobError, match="worker name is empty"):
        Requester().job("")


def test_params_and_keywords_do_not_mix():
    with pytest.raises(TypeError, match="either params= or name=, timeout=, not both"):
        Requester().job("responder", params=JobParams(), name="echo", timeout=1)


def test_params_has_to_be_a_params_object():
    with pytest.raises(InvalidJobTypeError, match="give a JobParams"):
        Requester().job("responder", params={"name": "echo"})  # type: ignore[arg-type]


def test_an_unknown_keyword_is_refused_with_the_known_ones():
    with pytest.raises(TypeError, match=r"unexpected keyword tiemout; known: .*timeout"):
        Requester().job("responder", tiemout=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="unexpected keyword cancel_on_error"):
        Requester().job("responder", cancel_on_error=True)  # type: ignore[call-arg]


def test_bad_input_is_a_value_error_and_bad_types_are_type_errors():
    assert issubclass(InvalidJobError, ValueError)
    assert issubclass(InvalidJobTypeError, TypeError)
