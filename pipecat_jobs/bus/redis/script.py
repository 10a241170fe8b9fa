"""The scripts that keep a channel's state, as commands for the server."""

import hashlib
import re
from dataclasses import dataclass
from importlib.resources import files
from operator import methodcaller

from pipecat_jobs.bus.redis.link import Command

_FOLDER = files("pipecat_jobs.bus.redis").joinpath("lua")
_COMMANDS = re.compile(rb"^(?:function )?commands\.(\w+)", re.MULTILINE)


def _script(part: str) -> bytes:
    names = ("state", "placing", "foreign", part, "run")
    return b"\n".join(_FOLDER.joinpath(f"{name}.lua").read_bytes() for name in names)


# The server runs a script from its top each time; the one for what is sent leaves the other's part
# out.
_SCRIPTS = (_script("traffic"), _script("membership"))
_SHAS = {
    command.decode(): hashlib.sha1(script, usedforsecurity=False).hexdigest()
    for script in _SCRIPTS
    for command in _COMMANDS.findall(script)
}

_encoded = methodcaller("encode", "utf-8", "surrogatepass")

#: What makes the server know the scripts.
LOAD: tuple[Command, ...] = tuple(("SCRIPT", "LOAD", script) for script in _SCRIPTS)


@dataclass(frozen=True, slots=True)
class Limits:
    """What every process of a channel has to say alike.

    Parameters:
        lease: Seconds without a sign of life after which a process counts as dead.
        takeover: Seconds that a request waits for a process that may take it.
        max_attempts: How many processes a request may be lost with before it is given up.
        inbox: How many messages may wait for one process before it counts as dead.
    """

    lease: float
    takeover: float
    max_attempts: int
    inbox: int = 100_000

    @property
    def linger(self) -> float:
        """Seconds that keys outlive the last process that cares for them."""
        return 60.0 + 2 * (self.lease + self.takeover)

    def __str__(self) -> str:
        milliseconds = [round(each * 1000) for each in (self.lease, self.takeover, self.linger)]
        lease, takeover, linger = milliseconds
        return f"{lease} {takeover} {self.max_attempts} {self.inbox} {linger}"


class Channel:
    """Makes the commands of one channel.

    Args:
        name: The channel's name.
        limits: Its limits.
    """

    def __init__(self, name: str, limits: Limits):
        # The braces keep all keys of a channel in one slot of a cluster.
        self.prefix = f"pipecat-jobs:{{{name}}}"
        self._limits = str(limits)

    def call(
        self, name: str, process: str, number: int, *arguments: bytes | str | int, after: int = 0
    ) -> Command:
        """Make one command.

        Args:
            name: A command of the scripts.
            process: Id of this process.
            number: The call's number among those of this process, or 0 for one that may be
                repeated.
            *arguments: What the command takes.
            after: Number of a call without which this one must not be done, or 0.

        Returns:
            The command.
        """
        # A name may hold half of a surrogate pair, and must not keep the others from being sent.
        sent = [_encoded(each) if isinstance(each, str) else each for each in arguments]
        head = ("EVALSHA", _SHAS[name], 1, self.prefix, name, process, self._limits, number, after)
        return (*head, *sent)

    def inbox(self, process: str) -> tuple[str, str]:
        """Name the streams that a process reads.

        Args:
            process: Its id.

        Returns:
            The urgent one and the other.
        """
        return f"{self.prefix}:in:{process}:u", f"{self.prefix}:in:{process}:d"
