"""The call of a typed handler: its arguments from the payload, and its result as plain data."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

from pipecat.bus.messages import BusJobRequestMessage

from pipecat_jobs._protocol.signatures import HandlerSignature, InvalidPayloadError
from pipecat_jobs.outcomes import JobData


class TypedCall:
    """One call of a typed handler."""

    __slots__ = ("_arguments", "_method", "_request", "_signature")

    def __init__(
        self,
        signature: HandlerSignature,
        method: Callable[..., Any],
        request: BusJobRequestMessage,
    ):
        self._signature = signature
        self._method = method
        self._request = request
        self._arguments: JobData | None = None

    def find_problem(self) -> str | None:
        """Read the payload of the request; say what is wrong with it, or return None."""
        try:
            self._arguments = self._signature.bind(self._request.payload)
        except InvalidPayloadError as error:
            return str(error)
        return None

    def __call__(
        self, request: BusJobRequestMessage
    ) -> Awaitable[object] | AsyncIterator[JobData | None]:
        """Call the handler for a request, or for a copy that an interceptor has made."""
        arguments = self._arguments
        if arguments is None or request is not self._request:
            arguments = self._signature.bind(request.payload)
        given = (request,) if self._signature.takes_message else ()
        result = self._method(*given, **arguments)
        return self._write_chunks(result) if self._signature.streams else result

    def write(self, result: object) -> JobData | None:
        """Write what the handler has returned."""
        return self._signature.response.write(result)

    async def _write_chunks(self, chunks: AsyncIterator[object]) -> AsyncIterator[JobData | None]:
        async with aclosing(chunks):  # pyright: ignore[reportArgumentType]
            async for chunk in chunks:
                yield self._signature.response.write(chunk)
