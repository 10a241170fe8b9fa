"""The debate as a voice bot on Pipecat's runner: ``python -m examples.debate.bot``."""

import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from importlib.util import find_spec

from loguru import logger
from pipecat.evals.transport import EvalTransportParams
from pipecat.runner.types import RunnerArguments
from pipecat.runner.utils import create_transport
from pipecat.transports.base_transport import TransportParams

from examples.debate.speech import Speech, TypedSpeech, find_speech
from examples.debate.stage import find_notice, find_provider
from examples.debate.voice import converse

#: Modules of the bot that only the extra installs.
_REQUIRED = ("aiortc", "deepgram", "fastapi", "uvicorn")


async def bot(runner_args: RunnerArguments) -> None:
    """Hold one conversation. Pipecat's runner calls this for every client."""
    speech = choose_speech(runner_args.cli_args)
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


def choose_speech(arguments: Namespace | None) -> Speech:
    """Choose how the user and the bot talk.

    Args:
        arguments: Those of the command line; None if Pipecat's runner was not started by one.

    Returns:
        The services for speech.

    Raises:
        ValueError: If they cannot be had: see ``find_speech``.
    """
    if arguments is not None and arguments.typed:
        return TypedSpeech()
    return find_speech()


def transport_params(speech: Speech) -> dict[str, Callable[[], TransportParams]]:
    """Make the parameters of each transport of this bot.

    Args:
        speech: How the user and the bot talk.

    Returns:
        A function that makes the parameters, by the name of the transport.
    """
    sound = speech.sound

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
    """Run the bot on Pipecat's runner, which reads the command line with our flag in it.

    Returns:
        Why the bot cannot run; None if it can.
    """
    if any(find_spec(module) is None for module in _REQUIRED):
        return 'The voice bot needs more than is installed: pip install ".[voice]"'
    # Importing the runner also reads the keys in a .env file.
    from pipecat.runner.run import app
    from pipecat.runner.run import main as run

    from examples.debate.page import add_page

    flags = ArgumentParser(add_help=False)
    flags.add_argument("--typed", action="store_true", help="type and read instead of speaking")
    try:
        speech = choose_speech(flags.parse_known_args()[0])
        find_tempo()
        notice = find_notice()
    except ValueError as error:
        return str(error)
    print(f"{notice}.")
    print(*speech.notices, sep="\n", flush=True)
    # Pipecat's own page stays at /client/.
    add_page(app)
    run(ArgumentParser(description=__doc__, parents=[flags]))
    return None


if __name__ == "__main__":
    sys.exit(main())
