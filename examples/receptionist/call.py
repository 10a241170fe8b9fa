"""The receptionist on Pipecat's runner: ``python -m examples.receptionist.call``.

Pipecat's evaluator writes to her there: ``pipecat eval run evals/receptionist``.
"""

import asyncio

from pipecat.evals.transport import EvalTransportParams
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair
from pipecat.runner.types import RunnerArguments
from pipecat.runner.utils import create_transport

from examples.receptionist.script import find_llm
from examples.receptionist.stage import make_receptionist, running

#: Seconds in which the scripted LLM writes a word: as slow as speech, to be talked over.
_PACE = 0.3


async def bot(runner_args: RunnerArguments) -> None:
    """Hold one conversation. Pipecat's runner calls this for every client."""
    transport = await create_transport(runner_args, {"eval": EvalTransportParams})
    receptionist = make_receptionist(
        find_llm(pace=_PACE),
        LLMContextAggregatorPair(LLMContext()),
        ears=[transport.input()],
        mouth=[transport.output()],
    )
    gone = asyncio.Event()

    async def hang_up(*_: object) -> None:
        gone.set()

    transport.add_event_handler("on_client_disconnected", hang_up)
    receptionist.add_event_handler("on_pipeline_finished", hang_up)
    async with running(receptionist, pace=2):
        await gone.wait()


if __name__ == "__main__":
    # Importing the runner also reads the keys in a .env file.
    from pipecat.runner.run import main

    main()
