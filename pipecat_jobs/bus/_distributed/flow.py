"""How fast streams flow between processes: as fast as the server takes them, and they are read."""

from pipecat_jobs.bus._distributed.open_jobs import Asked, Ledger
from pipecat_jobs.bus.envelope import Envelopes
from pipecat_jobs.bus.redis.inbox import Entry
from pipecat_jobs.bus.redis.outbox import Call, Lane, Outbox

#: What it is signed for.
_PURPOSE = "flow"
_WAIT, _GO_ON = b"wait", b"go on"


class Flow:
    """Has a stream wait in the process that sends it while it is not read in this one.

    Args:
        ledger: The jobs of this process.
        outbox: Where what crosses the server goes.
        envelopes: Goes around it.
    """

    def __init__(self, ledger: Ledger, outbox: Outbox, envelopes: Envelopes):
        self._ledger = ledger
        self._outbox = outbox
        self._envelopes = envelopes

    def chunk_came(self, asked: Asked, attempt: int) -> None:
        """Have a stream wait if its reader has enough to read.

        Args:
            asked: The job that a chunk has come for.
            attempt: The attempt that it comes from.
        """
        window = asked.window()
        if window is None or not window.full or asked.held_up == attempt:
            return
        asked.held_up = attempt
        self._say(asked, _WAIT)

        def has_room(_: object) -> None:
            if asked.held_up == attempt and self._ledger.asked(asked.parties) is asked:
                asked.held_up = 0
                self._say(asked, _GO_ON)

        window.next_room().add_done_callback(has_room)

    def _say(self, asked: Asked, how: bytes) -> None:
        def arguments(process: str, number: int) -> tuple[str | bytes | int, ...]:
            sealed = self._envelopes.seal(_PURPOSE, process, number, how)
            return asked.request.number, Lane.URGENT.letter, "f", "0", sealed

        self._outbox.put(Call(Lane.URGENT, "order", arguments))

    def read(self, entry: Entry) -> None:
        """Do what the reader in another process has said.

        Args:
            entry: The message.

        Raises:
            UnreadableMessageError: If it is none of this channel.
        """
        letter = self._envelopes.open(_PURPOSE, entry.body)
        held = self._ledger.held_as(entry.ref)
        if held is not None:
            held.window.hold(letter.body == _WAIT)
