"""The scripts that keep a channel's state, as commands for the server."""

import hashlib
import re
from dataclasses import dataclass
from importlib.resources import files
from operator import methodcaller

from pipecat_jobs.bus.redis.link import Command

_FOLDER = files("pipecat_jobs.bus.redis").joinpath("lua")
_COMMANDS = re.compile(rb"^(?:function )?commands\.(\w+)", re.MULTILINE)


def _read_script(part: str) -> bytes:
    names = ("state", "placing", "foreign", part, "run")
    return b"\n".join(_FOLDER.joinpath(f"{name}.lua").read_bytes() for name in names)


# The server executes a whole script for each call, so the script for messages leaves out the
# commands of membership.
_SCRIPTS = (_read_script("traffic"), _read_script("membership"))
_SHAS = {
    command.decode(): hashlib.sha1(script, usedforsecurity=False).hexdigest()
    for script in _SCRIPTS
    for command in _COMMANDS.findall(script)
}

_encode_text = methodcaller("encode", "utf-8", "surrogatepass")

#: Commands that load the scripts into the server.
LOAD: tuple[Command, ...] = tuple(("SCRIPT", "LOAD", script) for script in _SCRIPTS)


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a channel, which must be the same in all of its processes."""

    #: Seconds without a renewal after which a process is considered dead.
    lease: float
    #: Seconds that a request waits for a process that may take it.
    takeover: float
    #: After how many attempts in processes that died a job ends as lost.
    max_attempts: int
    #: How many entries may wait for a process before it is considered dead.
    inbox: int = 100_000

    @property
    def linger(self) -> float:
        """Seconds until keys expire after the last renewal by a process that needs them."""
        return 60.0 + 2 * (self.lease + self.takeover)

    def __str__(self) -> str:
        milliseconds = [round(each * 1000) for each in (self.lease, self.takeover, self.linger)]
        lease, takeover, linger = milliseconds
        return f"{lease} {takeover} {self.max_attempts} {self.inbox} {linger}"


class Channel:
    """Makes the commands of one channel."""

    def __init__(self, name: str, limits: Limits):
        # The braces put all keys of a channel into one hash slot.
        self.prefix = f"pipecat-jobs:{{{name}}}"
        self._limits = str(limits)

    def call(
        self, name: str, process: str, number: int, *arguments: bytes | str | int, after: int = 0
    ) -> Command:
        """Make the command of a call; ``state.lua`` describes ``number`` and ``after``."""
        # A name may hold half of a surrogate pair, which must not block the calls behind it.
        sent = [_encode_text(each) if isinstance(each, str) else each for each in arguments]
        head = ("EVALSHA", _SHAS[name], 1, self.prefix, name, process, self._limits, number, after)
        return (*head, *sent)

    def name_inbox(self, process: str) -> tuple[str, str]:
        """Return the names of the urgent and the data stream that a process reads."""
        return f"{self.prefix}:in:{process}:u", f"{self.prefix}:in:{process}:d"
