"""Jobs whose requests a stranger might repeat, and that must not run twice or were asked long ago.

Who can write to the server can put a recorded request into the inbox of another process of the
pool, and write that the job is that one's. The only one to know better is whoever asked: on a
channel with a secret, a process waits for the asker's signed word before it begins such a job. The
asker gives one that must not run twice to one process, and any other for as long as it is open.
"""

import json
from collections.abc import Callable

from loguru import logger
from pipecat.bus.messages import BusJobRequestMessage

from pipecat_jobs._protocol.text import describe, shorten
from pipecat_jobs.bus._distributed.open_jobs import Held, Ledger, Parties
from pipecat_jobs.bus._distributed.stats import BusStats
from pipecat_jobs.bus.envelope import Envelopes
from pipecat_jobs.bus.redis.inbox import Entry
from pipecat_jobs.bus.redis.outbox import Argument, Call, Lane, Outbox
from pipecat_jobs.errors import UnreadableMessageError

#: What they are signed for.
_CLAIM, _GRANT = "claim", "grant"


class Claims:
    """Asks for the asker's word, and gives it.

    Args:
        ledger: The jobs of this process.
        outbox: Where what crosses the server goes.
        envelopes: Goes around it.
        give_back: Gives a job back to the server that is another process's.
        stats: Where to count.
    """

    def __init__(
        self,
        ledger: Ledger,
        outbox: Outbox,
        envelopes: Envelopes,
        give_back: Callable[[Held], None],
        stats: BusStats,
    ):
        self._ledger = ledger
        self._outbox = outbox
        self._envelopes = envelopes
        self._give_back = give_back
        self._stats = stats

    def claim(self, held: Held, request: BusJobRequestMessage, *, once: bool) -> None:
        """Ask whether a job is this process's.

        Args:
            held: The job.
            request: Its request, for when it is.
            once: Whether it must not run twice.
        """
        held.unbegun, held.once = request, once

        def arguments(process: str, number: int) -> tuple[Argument, ...]:
            held.claimant = process
            parties = held.parties
            claim = [held.ref, parties.asker, parties.worker, parties.job_id, once]
            sealed = self._envelopes.seal(_CLAIM, process, number, json.dumps(claim).encode())
            return held.ref, held.attempt, Lane.URGENT.letter, "q", "0", sealed

        def replied(reply: str) -> None:
            waits = held.unbegun is not None and self._ledger.held_as(held.ref) is held
            if reply == "stale" and waits:
                self._stats.late_answers += 1
                logger.warning(f"not beginning {request}: it is not, or no more, this process's")
                # A stranger may have repeated what this process is only about to get.
                self._ledger.disregard(held)

        self._outbox.put(Call(Lane.URGENT, "tell", arguments, replied))

    def claim_again(self) -> None:
        """Ask once more for what has not been answered: the server may have lost a word."""
        for held in self._ledger.all_held():
            if held.unbegun is not None:
                self.claim(held, held.unbegun, once=held.once)

    def claimed(self, entry: Entry) -> None:
        """Give a process the word it asks for, or the name of the one that has got it.

        Args:
            entry: What it asks.

        Raises:
            UnreadableMessageError: If it is no claim of this channel.
        """
        letter = self._envelopes.open(_CLAIM, entry.body)
        try:
            ref, *names, once = json.loads(letter.body)
            asked = self._ledger.asked(Parties(*names))
        except (ValueError, TypeError, RecursionError) as error:
            raise UnreadableMessageError(f"not a claim: {error}") from error
        if ref != entry.ref:
            raise UnreadableMessageError(f"a claim to {shorten(ref)} for job '{entry.ref}'")
        if asked is None or entry.ref.rpartition(":")[2] != str(asked.request.number):
            # The server tells whoever claims it.
            return
        granted = letter.sender
        if once:
            granted = asked.granted = asked.granted or granted

        def arguments(process: str, number: int) -> tuple[Argument, ...]:
            word = f"{granted} {entry.ref}".encode()
            sealed = self._envelopes.seal(_GRANT, process, number, word)
            return asked.request.number, Lane.URGENT.letter, "y", "0", sealed

        self._outbox.put(Call(Lane.URGENT, "order", arguments))

    def granted(self, entry: Entry) -> BusJobRequestMessage | None:
        """Hear an asker's word.

        Args:
            entry: The word.

        Returns:
            The request, if it is this process's to begin now.

        Raises:
            UnreadableMessageError: If it is no word of this channel.
        """
        letter = self._envelopes.open(_GRANT, entry.body)
        process, _, ref = letter.body.decode("utf-8", "replace").partition(" ")
        held = self._ledger.held_as(ref)
        if held is None or held.unbegun is None:
            return None
        if letter.sender != ref.rpartition(":")[0]:
            raise UnreadableMessageError(f"'{letter.sender}' gives away '{ref}', not its own")
        if process != held.claimant:
            logger.warning(f"not beginning {describe(held.unbegun)}: another process has")
            self._ledger.let_go(held)
            self._give_back(held)
            return None
        request, held.unbegun = held.unbegun, None
        return request
