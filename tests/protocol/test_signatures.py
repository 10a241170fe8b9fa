"""How a handler's parameters are read: the message, the fields, and what is refused."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Annotated, Any, Optional

import pytest
from pipecat.bus.messages import BusJobRequestMessage
from pipecat.pipeline.job_decorator import job as pipecats_job
from pydantic import BaseModel, Field

from pipecat_jobs import BaseWorker, InvalidJobError, InvalidJobTypeError, job
from pipecat_jobs._protocol.handlers import collect_handlers, find_signature, prepare_handlers

if TYPE_CHECKING:
    from somewhere import BusJobRequestMessage as ImportedForTypeCheckers


async def alone(self, message): ...
async def alone_under_another_name(self, request): ...
async def annotated(self, message: BusJobRequestMessage): ...
async def annotated_under_another_name(self, request: BusJobRequestMessage): ...
async def optional(self, request: Optional[BusJobRequestMessage] = None): ...  # noqa: UP045
async def as_any(self, message: Any): ...
async def with_a_default(self, message, retries=3): ...
async def with_others(self, message, *args, **kwargs): ...
async def wrapped(*args, **kwargs): ...
async def for_type_checkers(self, message: ImportedForTypeCheckers) -> ImportedForTypeCheckers: ...
async def streams(self, message):
    yield {}


@pytest.mark.parametrize(
    "method",
    [
        alone,
        alone_under_another_name,
        annotated,
        annotated_under_another_name,
        optional,
        as_any,
        with_a_default,
        with_others,
        wrapped,
        for_type_checkers,
        streams,
    ],
)
def test_a_handler_of_the_message_alone_stays_as_it_was(method: Any):
    marked = job(name="x")(method)
    assert marked is method
    assert marked.is_job_handler
    assert find_signature(marked) is None
    request = marked.request({"a": 1})
    assert (request.name, request.payload) == ("x", {"a": 1})
    assert request.read({"b": 2}) == {"b": 2}


def test_a_handler_with_pipecats_decorator_stays_as_it_was():
    class Worker(BaseWorker):
        @pipecats_job(name="pipecats")
        async def pipecats(self, message, title: str = ""): ...

    assert [spec.signature for spec in collect_handlers(Worker).values()] == [None]


async def one_text(self, title: str): ...
async def a_text_called_message(self, message: str): ...
async def any_value(self, value: Any): ...
async def nothing(self): ...
async def by_keyword(self, *, title: str): ...
async def beside_the_message(self, message: BusJobRequestMessage, title: str): ...
async def beside_a_bare_message(self, message, title: str): ...
async def not_yet_defined(self, later: Later): ...
async def open_ended(self, **fields): ...


TYPED: list[tuple[Callable[..., Any], bool, dict[str, Any]]] = [
    (one_text, False, {"title": "a"}),
    (a_text_called_message, False, {"message": "a"}),
    (any_value, False, {"value": [1]}),
    (nothing, False, {}),
    (by_keyword, False, {"title": "a"}),
    (beside_the_message, True, {"title": "a"}),
    (beside_a_bare_message, True, {"title": "a"}),
    (not_yet_defined, False, {"later": {"number": 1}}),
    (open_ended, False, {"a": 1}),
]


class Later(BaseModel):
    number: int


@pytest.mark.parametrize(("method", "takes_message", "fields"), TYPED)
def test_any_other_parameters_are_the_fields_of_the_payload(
    method: Any, takes_message: bool, fields: dict[str, Any]
):
    signature = find_signature(job(method))
    assert signature is not None
    assert signature.takes_message is takes_message
    assert signature.job_name == method.__name__
    assert signature.request(**fields).payload == fields
    assert signature.bind(fields).keys() == fields.keys()


def test_a_class_that_is_defined_in_a_function_is_found():
    class Local(BaseModel):
        number: int

    class Worker(BaseWorker):
        class Nested(BaseModel):
            text: str

        @job
        async def work(self, local: Local, nested: Nested) -> Local: ...

        @job()
        async def stream(self, local: Local) -> AsyncIterator[Nested]:
            yield self.Nested(text="a")

    prepare_handlers(Worker)
    request = Worker.work.request(Local(number=1), Worker.Nested(text="a"))
    assert request.payload == {"local": {"number": 1}, "nested": {"text": "a"}}
    assert request.read({"number": 2}) == Local(number=2)


def test_an_annotation_that_cannot_be_resolved_is_refused_when_a_worker_is_made():
    class Worker(BaseWorker):
        @job
        async def work(self, title: Nowhere) -> None: ...  # noqa: F821

    with pytest.raises(InvalidJobTypeError, match=r"work\(\): an annotation cannot .*'Nowhere'"):
        Worker("worker")


class Opaque:
    pass


async def opaque(self, value: Opaque): ...
async def opaque_result(self, value: str) -> Opaque: ...
async def callback(self, value: Callable[[], int]): ...
async def typed_others(self, title: str, **fields: int): ...


@pytest.mark.parametrize("method", [opaque, opaque_result, callback, typed_others])
def test_a_type_that_cannot_be_sent_is_refused_when_a_worker_is_made(method: Any):
    worker = type("Worker", (BaseWorker,), {"work": job(method)})
    with pytest.raises(InvalidJobTypeError, match=f"@job {method.__name__}"):
        worker("worker")


async def message_second(self, title: str, message: BusJobRequestMessage): ...
async def without_a_type(self, title, shelf: int): ...
async def only_by_position(self, title: str, /): ...
async def starred(self, title: str, *more: str): ...
async def field_default(self, title: str = Field(min_length=1)): ...


REFUSED = [
    (message_second, "put it first"),
    (without_a_type, "annotate it, e.g. 'title: str'"),
    (only_by_position, "has no name in a payload"),
    (starred, "has no name in a payload"),
    (field_default, "write 'title: Annotated"),
]


@pytest.mark.parametrize(("method", "said"), REFUSED)
def test_a_parameter_that_cannot_be_a_field_is_refused_where_it_is_written(method: Any, said: str):
    with pytest.raises(InvalidJobError, match="@job") as caught:
        job(method)
    assert said in str(caught.value)


def test_a_name_by_position_is_refused():
    with pytest.raises(InvalidJobTypeError, match="give the name by keyword"):
        job("research")  # type: ignore


def test_a_decorator_of_the_users_keeps_the_fields():
    def traced(method: Any) -> Any:
        @functools.wraps(method)
        async def call(*args: Any, **kwargs: Any) -> Any:
            return await method(*args, **kwargs)

        return call

    class Worker(BaseWorker):
        @job
        @traced
        async def inner(self, title: str) -> int: ...

        @traced
        @job
        async def outer(self, title: str) -> int: ...

    prepare_handlers(Worker)
    handlers = collect_handlers(Worker)
    assert handlers.keys() == {"inner", "outer"}
    for spec in handlers.values():
        assert spec.signature is not None
        assert spec.signature.bind({"title": "a"}) == {"title": "a"}


class Range(BaseModel):
    low: int = Field(alias="from")


@job
async def search(self: Any, within: Range, limit: Annotated[int, Field(alias="most")] = 3) -> None:
    pass


def test_a_request_converts_its_arguments_and_refuses_wrong_ones():
    wanted = {"within": {"from": 1}}
    assert search.request(Range(**{"from": 1})).payload == wanted
    assert search.request(within={"from": "1"}).payload == wanted  # type: ignore
    assert search.request(Range(**{"from": 1}), limit=4).payload == {**wanted, "most": 4}
    signature = find_signature(search)
    assert signature is not None
    assert signature.bind({"within": {"from": 1}, "most": 4})["limit"] == 4
    with pytest.raises(TypeError, match="missing a required argument: 'within'"):
        search.request()  # type: ignore
    with pytest.raises(TypeError, match="unexpected keyword argument 'without'"):
        search.request(within={}, without=1)  # type: ignore
    with pytest.raises(InvalidJobTypeError, match=r"'within.from': Input should be a valid"):
        search.request(within={"from": "a"})  # type: ignore
