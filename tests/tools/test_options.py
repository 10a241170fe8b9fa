"""Invalid options of ``@job_tool`` are refused where they are written."""

import math
from typing import Any

import pytest

from pipecat_jobs import InvalidJobError, InvalidJobTypeError, JobTool, job_tool

LATER = {"cancel_on_interruption": False}


@pytest.mark.parametrize(
    ("workers", "options", "error", "advice"),
    [
        ((), {}, InvalidJobError, "give the names"),
        (("a", "a"), {}, InvalidJobError, "name each worker once"),
        (("",), {}, InvalidJobError, "is empty"),
        ((7,), {}, InvalidJobTypeError, "give the worker's name as a str"),
        ((len,), {}, InvalidJobTypeError, r"write @job_tool\('researcher'"),
        (("a",), {"job": ""}, InvalidJobError, "name of a @job handler"),
        (("a",), {"job": 7}, InvalidJobTypeError, "the name of a @job handler"),
        (("a",), {"run_once": 1}, InvalidJobTypeError, "run_once is 1; give True or False"),
        (("a",), {"retry": 3}, InvalidJobTypeError, "retry is 3; give a Retry"),
        (("a",), {"label": 7}, InvalidJobTypeError, "a title for people"),
        (("a",), {"timeout": -1}, InvalidJobError, "timeout is -1"),
        (("a",), {"timeout": 0}, InvalidJobError, "or None"),
        (("a",), {"timeout": "soon"}, InvalidJobTypeError, "seconds as a number"),
        (("a",), {"protected": "yes"}, InvalidJobTypeError, "True or False"),
        (("a",), {"progress": 1}, InvalidJobTypeError, "True or False"),
        (("a",), {"on_failure": "ignore"}, InvalidJobError, "'partial', 'fail'"),
        (("a",), {"repeat_by": "name"}, InvalidJobError, "'arguments', 'tool'"),
        (("a",), {"repeat_by": "tool"}, InvalidJobError, "give on_repeat='refuse'"),
        (("a",), {"on_repeat": "again"}, InvalidJobError, "'replace', 'confirm', 'steer'"),
        (("a",), {"on_repeat": "steer"}, InvalidJobError, "repeat_by='tool'"),
        (("a",), {"render": "text"}, InvalidJobTypeError, "a function of the outcomes"),
        (("a",), {"cancellable_by_llm": True}, InvalidJobError, "cancel_on_interruption=False"),
        (("a",), {"progress": True}, InvalidJobError, "cancel_on_interruption=False"),
        (("a",), {"say_after": -1}, InvalidJobError, "more than zero seconds"),
        (("a",), {"say_after": math.nan}, InvalidJobError, "more than zero seconds"),
        (("a",), {"say_after": "1"}, InvalidJobTypeError, "seconds as a number"),
        (("a",), {"say_after": 1, "say_every": 0}, InvalidJobError, "more than zero"),
        (("a",), {"say_every": 1}, InvalidJobError, "say_every needs say_after"),
        (("a",), {"say": "Hm."}, InvalidJobError, "say needs say_after"),
        (("a",), {"say_after": 1, "say": ""}, InvalidJobError, "say is empty"),
        (("a",), {"say_after": 1, "say": 7}, InvalidJobTypeError, "give a text"),
        (("a",), {"protected": True, "timeout": 9}, InvalidJobError, "excludes timeout=9"),
        (("a",), {"protected": True, "cancellable_by_llm": True}, InvalidJobError, "excludes"),
        (("a",), {"protected": True, "cancel_on_interruption": True}, InvalidJobError, "excludes"),
        (("a",), {"protected": True, "on_repeat": "replace"}, InvalidJobError, "'refuse'"),
        (("a",), {"need": 2}, InvalidJobError, "need is 2, more than the 1 workers"),
        (("a",), {"need": "some"}, InvalidJobError, "give one of 'all', 'first'"),
        (("a",), {"need": None}, InvalidJobTypeError, "need is None; give 'all', 'first' or"),
        (("a", "b"), {"need": 1, "on_failure": "fail"}, InvalidJobError, "goes with need='all'"),
        (("a",), {"partial_after": 0}, InvalidJobError, "more than zero seconds"),
        (("a",), {"partial_after": 60}, InvalidJobError, "not before timeout=60"),
        (("a",), {"partial_after": 2, "timeout": 1}, InvalidJobError, "not before timeout=1"),
        (("a",), {"hedge_after": "1"}, InvalidJobTypeError, "seconds as a number"),
        (("a", "b"), {"hedge_after": 1}, InvalidJobError, "give need='first' with it"),
        (("a",), {"hedge_after": 1, "run_once": True}, InvalidJobError, "which run_once=True"),
        (("a", "b"), {"need": 1, "protected": True}, InvalidJobError, "excludes need=1: the jobs"),
        (("a",), {"partial_after": 1, "protected": True}, InvalidJobError, "partial_after=1"),
        (("a",), {"hedge_after": 1, "protected": True}, InvalidJobError, "excludes hedge_after=1"),
        (("a",), {"tiemout": 3}, TypeError, "no option tiemout; known: "),
    ],
)
def test_invalid_options_are_refused_with_what_to_write_instead(
    workers: tuple[Any, ...], options: dict[str, Any], error: type[Exception], advice: str
):
    with pytest.raises(error, match=advice) as caught:
        job_tool(*workers, **options)
    assert type(caught.value) is error


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"timeout": None},
        {"protected": True, "timeout": None, "cancel_on_interruption": False},
        {"cancellable_by_llm": True, **LATER},
        {"progress": True, "protected": True},
        {"progress": False},
        {"say_after": 2, "say": lambda progress: None, "say_every": 5.5},
        {"need": "all", "partial_after": 2, "on_failure": "fail", "timeout": None},
        {"need": "first", "hedge_after": 1, "on_failure": "partial", "partial_after": None},
        {"render": dict, "on_failure": "fail", "label": "Research", "run_once": True},
    ],
)
def test_valid_options_are_accepted(options: dict[str, Any]):
    @job_tool("a", **options)
    async def look_up(word: str):
        """Look a word up."""
        return {"word": word}

    assert isinstance(look_up, JobTool)
