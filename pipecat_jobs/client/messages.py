"""What a client may ask of its bot, and what it gets in return; see docs/how-to/client.md."""

import json
from typing import Annotated, Literal, TypeAlias

from pipecat.processors.frameworks.rtvi.models import (
    ErrorResponse,
    ErrorResponseData,
    RawServerResponseData,
    ServerMessage,
    ServerResponse,
)
from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    JsonValue,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)

#: The type of this package's messages, from the client and to it.
NAME = "pipecat-jobs"

#: The largest answer, in bytes of JSON.
_MOST_VALUE = 16_000
#: Characters of an id, of a reason, and of an error that a client gets.
_MOST_ID, _MOST_REASON, _MOST_ERROR = 200, 1_000, 200


class RefusedRequestError(Exception):
    """A client cannot have what it asks for; the text is for the client."""


# A limit of the length also refuses half of a surrogate pair, which a bus cannot carry.
Id: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=_MOST_ID)]
Reason: TypeAlias = Annotated[str, StringConstraints(max_length=_MOST_REASON)]


def _check_value(value: JsonValue) -> JsonValue:
    try:
        size = len(json.dumps(value, ensure_ascii=False, allow_nan=False).encode())
    except UnicodeEncodeError:
        # The error has a part of the text.
        raise ValueError("it has half of a surrogate pair") from None
    if size > _MOST_VALUE:
        raise ValueError(f"it has {size:,} bytes as JSON, more than {_MOST_VALUE:,}")
    return value


class CancelRequest(BaseModel):
    """The client cancels a job or a group."""

    action: Literal["cancel"]
    job_id: Id
    reason: Reason | None = None


class AnswerRequest(BaseModel):
    """The client answers a question of a handler."""

    action: Literal["answer"]
    question_id: Id
    value: Annotated[JsonValue, AfterValidator(_check_value)]


ClientRequest: TypeAlias = CancelRequest | AnswerRequest
_requests: TypeAdapter[ClientRequest] = TypeAdapter(
    Annotated[ClientRequest, Field(discriminator="action")]
)


def read_request(data: object) -> ClientRequest:
    """Read what a client sent, which may be anything.

    Raises:
        RefusedRequestError: If it is not a request of a client.
    """
    try:
        return _requests.validate_python(data)
    except ValidationError as error:
        # Neither the input nor a context is repeated to the client.
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "data"
        raise RefusedRequestError(f"{where}: {first['msg']}"[:_MOST_ERROR]) from None


def make_event(event: str, **data: object) -> ServerMessage:
    """Make a message that the client did not ask for."""
    return ServerMessage(data={"type": NAME, "event": event, **data})


def make_response(message_id: str, data: object) -> ServerResponse:
    """Make the response to a request that was done."""
    return ServerResponse(id=message_id, data=RawServerResponseData(t=NAME, d=data))


def make_error_response(message_id: str, error: str) -> ErrorResponse:
    """Make the response to a request that was refused."""
    return ErrorResponse(id=message_id, data=ErrorResponseData(error=error))
