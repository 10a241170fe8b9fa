"""A job tool for the functions of a Pipecat Flows node.

It is imported only for a function with ``flow_manager``, so that other bots do not load Flows.
"""

from pipecat.flows import NO_RESPONSE, FlowArgs, FlowManager, FlowsFunctionSchema

from pipecat_jobs._llm.watch import was_interrupted_before_it_began
from pipecat_jobs.errors import InvalidJobError
from pipecat_jobs.outcomes import JobData
from pipecat_jobs.tools.arguments import ValidArguments
from pipecat_jobs.tools.call import check_requester
from pipecat_jobs.tools.dispatch import Dispatch
from pipecat_jobs.tools.options import JobToolKeywords
from pipecat_jobs.tools.repeats import Run
from pipecat_jobs.tools.results import ToolResult, make_interrupted_result, to_tool_result
from pipecat_jobs.tools.spec import TimeLeft, ToolSpec

_IMPOSSIBLE = ("say_after", "progress", "cancellable_by_llm", "report")


def flow_tool(spec: ToolSpec, given: JobToolKeywords) -> FlowsFunctionSchema:
    """Make a function for the ``functions`` of a node.

    The flow manager settles each call itself, and its functions cannot report progress or speak.
    """
    if spec.arguments.is_method:
        raise InvalidJobError(
            f"tool {spec.name}() is a method that takes 'flow_manager'; make it a function"
        )
    for key in _IMPOSSIBLE:
        if given.get(key):
            raise InvalidJobError(
                f"tool {spec.name}() is a function of a flow, where {key} has no effect; "
                "leave it out, or offer the tool in LLMContext(tools=[...])"
            )

    async def handler(arguments: FlowArgs, flow_manager: FlowManager) -> tuple[object, object]:
        worker = flow_manager.worker

        async def prepare(valid: ValidArguments) -> tuple[JobData, object]:
            return await spec.prepare([flow_manager], valid)

        async def ask(valid: ValidArguments, time_left: TimeLeft, run: Run) -> ToolResult:
            payload, node = await prepare(valid)
            dispatch = Dispatch(spec.name, check_requester(worker, spec.name), spec.options)
            run.jobs.set_result(dispatch)
            value = await dispatch.run(payload, timeout=time_left(), on_update=None, awaited=set())
            return ToolResult(value, next_node=node)

        if was_interrupted_before_it_began():
            result = make_interrupted_result(spec.name)
        else:
            result = await spec.run(worker, arguments, ask, prepare)
        silent = result.run_llm is False
        return to_tool_result(spec.name, result.value), NO_RESPONSE if silent else result.next_node

    return FlowsFunctionSchema(
        name=spec.name,
        description=spec.description,
        properties=spec.properties,
        required=spec.arguments.required,
        handler=handler,
        cancel_on_interruption=spec.options.cancel_on_interruption,
        timeout_secs=spec.options.tool_timeout,
    )
