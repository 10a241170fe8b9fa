"""The debate as a voice bot on Pipecat's runner: ``python -m examples.debate.bot``."""

import os
import sys
from collections.abc import Callable
from importlib.util import find_spec

from loguru import logger
from pipecat.evals.transport import EvalTransportParams
from pipecat.runner.types import RunnerArguments
from pipecat.runner.utils import create_transport
from pipecat.transports.base_transport import TransportParams

from examples.debate.stage import SCRIPTED, find_key, find_provider
from examples.debate.voice import Speech, converse, find_speech

#: Modules of the bot that only the extra installs.
_REQUIRED = ("aiortc", "deepgram", "fastapi", "uvicorn")


async def bot(runner_args: RunnerArguments) -> None:
    """Hold one conversation. Pipecat's runner calls this for every client."""
    speech = find_speech()
    transport = await create_transport(runner_args, transport_params(speech))
    async with find_provider(tempo=find_tempo()) as provider:
        logger.info(provider.notice)
        await converse(
            transport,
            provider,
            speech,
            handle_sigint=runner_args.handle_sigint,
            idle_timeout=runner_args.pipeline_idle_timeout_secs,
        )


def transport_params(speech: Speech | None) -> dict[str, Callable[[], TransportParams]]:
    """Make the parameters of each transport of this bot.

    Args:
        speech: The services for speech; None for a transport without sound.

    Returns:
        A function that makes the parameters, by the name of the transport.
    """
    sound = speech is not None

    def daily() -> TransportParams:
        from pipecat.transports.daily.transport import DailyParams

        return DailyParams(audio_in_enabled=sound, audio_out_enabled=sound)

    return {
        "webrtc": lambda: TransportParams(audio_in_enabled=sound, audio_out_enabled=sound),
        "daily": daily,
        "eval": lambda: EvalTransportParams(audio_in_enabled=sound, audio_out_enabled=sound),
    }


def find_tempo() -> float:
    """Read the user's tempo for the scripted LLM.

    Returns:
        The factor of its pauses.

    Raises:
        ValueError: If it is not a number from 0 to 100.
    """
    wish = os.environ.get("DEBATE_TEMPO", "1")
    try:
        tempo = float(wish)
    except ValueError:
        tempo = -1.0
    if not 0 <= tempo <= 100:
        raise ValueError(f"DEBATE_TEMPO is a number from 0 to 100, not {wish!r}")
    return tempo


def main() -> str | None:
    """Run the bot on Pipecat's runner, which reads the command line.

    Returns:
        Why the bot cannot run; None if it can.
    """
    if any(find_spec(module) is None for module in _REQUIRED):
        return 'The voice bot needs more than is installed: pip install ".[voice]"'
    # Importing the runner also reads the keys in a .env file.
    from pipecat.runner.run import app
    from pipecat.runner.run import main as run

    from examples.debate.page import add_page

    try:
        speech = find_speech()
        find_tempo()
    except ValueError as error:
        return str(error)
    provider = find_key()
    print(f"{provider.notice if provider else SCRIPTED}.")
    if speech:
        print("Deepgram hears and Cartesia speaks.", flush=True)
    else:
        print("No DEEPGRAM_API_KEY and no CARTESIA_API_KEY: you type, and read the answers.")
    # Pipecat's own page stays at /client/.
    add_page(app)
    run()
    return None


if __name__ == "__main__":
    sys.exit(main())
