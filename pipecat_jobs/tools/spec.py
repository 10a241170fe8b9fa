"""A function with ``@job_tool``, and the run of one call of it, in an LLM worker or a flow."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from pydantic import ValidationError

from pipecat_jobs._protocol.deadline import inheriting
from pipecat_jobs._protocol.handlers import find_signature
from pipecat_jobs._protocol.tasks import RunningTask
from pipecat_jobs._protocol.text import shorten
from pipecat_jobs.errors import InvalidJobError, InvalidJobTypeError
from pipecat_jobs.outcomes import JobData
from pipecat_jobs.tools.arguments import Schema, ToolArguments, ValidArguments
from pipecat_jobs.tools.dispatch import Dispatch
from pipecat_jobs.tools.options import JobToolKeywords, JobToolOptions, check_options
from pipecat_jobs.tools.repeats import CONFIRMED, Repeats, Run
from pipecat_jobs.tools.results import ToolResult, make_error_result, report_steered

#: Returns the seconds that a call has left; None without a deadline.
TimeLeft = Callable[[], float | None]

_PROTECTED = (
    "Make this call once: it cannot be cancelled or taken back once it is made. Do not repeat it."
)
_CONFIRMED: Schema = {
    "type": "boolean",
    "description": "True only if the user was asked and wants a second call beside the first.",
}


@dataclass(frozen=True)
class ToolSpec:
    """A function with ``@job_tool``, which returns the payload of the jobs."""

    function: Callable[..., Awaitable[object]]
    arguments: ToolArguments
    options: JobToolOptions
    repeats: Repeats

    @classmethod
    def of(cls, function: Callable[..., Awaitable[object]], options: JobToolOptions) -> "ToolSpec":
        """Make the spec of a function; raise InvalidJobError if an LLM could not call it."""
        arguments = ToolArguments(function)
        if options.on_repeat == "confirm" and CONFIRMED in arguments.properties:
            raise InvalidJobError(
                f"tool {arguments.name}() has the parameter '{CONFIRMED}', which "
                "on_repeat='confirm' adds itself; give yours another name"
            )
        repeats = Repeats(arguments.name, options.on_repeat, options.repeat_by)
        return cls(function, arguments, options, repeats)

    @classmethod
    def of_handler(
        cls, handler: Callable[..., Any], workers: tuple[str, ...], options: JobToolKeywords
    ) -> "ToolSpec":
        """Make the spec of a typed handler, whose arguments are the payload as they are."""
        signature = find_signature(handler)
        if signature is None:
            raise InvalidJobTypeError(
                f"job is {shorten(handler)}; give a typed @job handler, whose parameters are the "
                "fields of its payload, or the name of a handler"
            )

        async def make_payload(**arguments: Any) -> JobData:
            return signature.request(**arguments).payload or {}

        make_payload.__name__, make_payload.__doc__ = handler.__name__, handler.__doc__
        fields = signature.signature
        vars(make_payload)["__signature__"] = fields
        make_payload.__annotations__ = {
            name: field.annotation for name, field in fields.parameters.items()
        }
        return cls.of(make_payload, check_options(workers, signature.job_name, options))

    @property
    def name(self) -> str:
        """The tool's name."""
        return self.arguments.name

    @property
    def description(self) -> str:
        """What the tool does, for the LLM."""
        description = self.arguments.description
        return f"{description}\n\n{_PROTECTED}" if self.options.protected else description

    @property
    def properties(self) -> dict[str, Schema]:
        """The schemas of the arguments that the LLM gives."""
        properties = self.arguments.properties
        return {**properties, CONFIRMED: _CONFIRMED} if self._asks_back else properties

    @property
    def _asks_back(self) -> bool:
        return self.options.on_repeat == "confirm"

    async def run(
        self,
        worker: object,
        given: Mapping[str, Any],
        ask: Callable[[ValidArguments, TimeLeft, Run], Awaitable[ToolResult]],
        prepare: Callable[[ValidArguments], Awaitable[tuple[JobData, object]]],
    ) -> ToolResult:
        """Run one call and return its result; an exception becomes a result too.

        ``ask`` runs the jobs, and sets them in the run. It is called only if the arguments are
        valid and ``on_repeat`` allows the call. ``prepare`` makes the payload that steers others.
        """
        time_left = self._start_clock()
        given = dict(given)
        confirmed = self._asks_back and given.pop(CONFIRMED, False) is True

        async def run_once() -> ToolResult:
            try:
                valid = self.arguments.validate(given)
            except ValidationError as error:
                return ToolResult({"error": self.arguments.explain(error)})
            # An exception becomes a result here already, so that calls that join this one get it.
            by_tool = self.options.repeat_by == "tool"
            identity = (worker, None if by_tool else valid.identity)

            async def work(run: Run) -> ToolResult:
                return await self.settle(lambda: ask(valid, time_left, run))

            async def steer(jobs: Dispatch) -> ToolResult | None:
                payload, _ = await prepare(valid)
                return report_steered(self.name, await jobs.steer(payload))

            if confirmed:
                return await self.repeats.run_beside(identity, work)
            return await self.repeats.run(identity, work, steer)

        with inheriting(self.options.timeout):
            return await self.settle(run_once)

    async def prepare(
        self, given_by_pipecat: list[object], arguments: ValidArguments
    ) -> tuple[JobData, object]:
        """Call the function; return the payload and the next node of a flow."""
        made = await self.function(*given_by_pipecat, **arguments.values)
        node: object = None
        if self.arguments.special == "flow_manager" and isinstance(made, tuple):
            pair = cast("tuple[Any, ...]", made)
            made, node = pair if len(pair) == 2 else (pair, None)
        if not isinstance(made, dict):
            raise InvalidJobTypeError(
                f"{self.name}() returned {made!r}; return the payload of its jobs, a dict"
            )
        return cast("JobData", made), node

    def _start_clock(self) -> TimeLeft:
        clock, timeout = asyncio.get_running_loop().time, self.options.timeout
        began = clock()
        return lambda: None if timeout is None else max(0.0, timeout - (clock() - began))

    async def settle(self, work: Callable[[], Awaitable[ToolResult]]) -> ToolResult:
        """Do the work of a call; make a result of what it raises."""
        task = RunningTask()
        try:
            return await work()
        except BaseException as error:
            task.survive(error)
            return make_error_result(self.name, error)
