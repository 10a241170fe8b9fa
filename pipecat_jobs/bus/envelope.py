"""What goes around a message on the wire: who sent it, in what order, and a signature.

The signature keeps out whoever can reach the server but does not know the secret. It covers the
channel, what the message is on its way to do there, the sender, its place among the sender's
messages, the time and the message, so that a recorded one cannot be put elsewhere or played again.
"""

import hashlib
import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass

from pipecat_jobs._protocol.recent import Recent
from pipecat_jobs.errors import InvalidJobError, InvalidJobTypeError, UnreadableMessageError

_VERSION = b"1"
_UNSIGNED = b"-"
#: How many senders' places are kept; a channel with more processes than that forgets the quietest.
_MOST_SENDERS = 4096


@dataclass(frozen=True, slots=True)
class Letter:
    """A message out of its envelope.

    Parameters:
        sender: Id of the process that sent it.
        number: Its place among that process's messages; each is greater than the one before.
        body: The message, encoded.
        is_old: Whether it may be a recorded one, by its age.
    """

    sender: str
    number: int
    body: bytes
    is_old: bool = False


class Envelopes:
    """Puts messages into envelopes, and takes them out of those it trusts.

    Args:
        channel: The channel, which the signature covers.
        secret: The secret that all processes of the channel share, or None to sign nothing.
        max_age: The most that a signed message may be old, and the most that clocks may differ, in
            seconds.
        clock: Gives the time, in seconds since the epoch.

    Raises:
        InvalidJobTypeError: If the secret is neither a str nor bytes.
        InvalidJobError: If the secret is empty, or cannot be written as UTF-8.

    Example::

        from pipecat_jobs.bus.envelope import Envelopes

        envelopes = Envelopes("session-42", secret="a long random string")
        sealed = envelopes.seal("urgent", "process-1", 1, b"hello")
        assert envelopes.open("urgent", sealed).body == b"hello"
    """

    def __init__(
        self,
        channel: str,
        *,
        secret: str | bytes | None = None,
        max_age: float = 300.0,
        clock: Callable[[], float] = time.time,
    ):
        self._key = _check_secret(secret)
        self._channel = channel.encode()
        self._max_age = max_age
        self._clock = clock
        self._places: Recent[tuple[str, str], int] = Recent(_MOST_SENDERS)

    @property
    def signs(self) -> bool:
        """Whether there is a secret to sign with."""
        return self._key is not None

    def seal(self, purpose: str, sender: str, number: int, body: bytes) -> bytes:
        """Put a message into an envelope.

        Args:
            purpose: What the message is on its way to do; :meth:`open` has to say the same.
            sender: Id of this process.
            number: The message's place among those of this process.
            body: The message, encoded.

        Returns:
            What :meth:`open` takes.
        """
        head = b"%s %s %d %d" % (_VERSION, sender.encode(), number, int(self._clock() * 1000))
        return b"%s %s\n%s" % (head, self._signature(purpose, head, body), body)

    def open(
        self, purpose: str, sealed: bytes, *, in_order: bool = True, however_old: bool = False
    ) -> Letter:
        """Take a message out of its envelope.

        Args:
            purpose: What it is here to do.
            sealed: What :meth:`seal` gave, or anything at all.
            in_order: Whether it has to be younger than the last one of the same sender and purpose.
            however_old: Whether an old one is given as well, as what it is.

        Returns:
            The message with its sender.

        Raises:
            UnreadableMessageError: If it is no envelope, is not signed as it has to be, is too old,
                or has been here before.
        """
        line, newline, body = sealed.partition(b"\n")
        head, _, signature = line.rpartition(b" ")
        try:
            version, sender_name, place, sent = head.split(b" ")
            sender, number, milliseconds = sender_name.decode("ascii"), int(place), int(sent)
        except ValueError as error:
            raise UnreadableMessageError(f"not an envelope: {error}") from error
        if not newline or version != _VERSION:
            raise UnreadableMessageError(f"an envelope of version {version!r}, not {_VERSION!r}")
        if not hmac.compare_digest(signature, self._signature(purpose, head, body)):
            raise UnreadableMessageError(f"not signed with this channel's secret, from '{sender}'")
        age = abs(self._clock() - milliseconds / 1000) if self.signs else 0.0
        if age > self._max_age and not however_old:
            raise UnreadableMessageError(
                f"signed more than {self._max_age:g} s ago or ahead, from '{sender}'; "
                "if it is no old one, set the clocks"
            )
        if in_order:
            last = self._places.get((sender, purpose))
            if last is not None and number <= last:
                raise UnreadableMessageError(f"number {number} of '{sender}' has been here before")
            self._places.remember((sender, purpose), number)
        return Letter(sender, number, body, is_old=age > self._max_age)

    def _signature(self, purpose: str, head: bytes, body: bytes) -> bytes:
        if self._key is None:
            return _UNSIGNED
        context = b"%d:%s%s\n%s\n" % (len(self._channel), self._channel, purpose.encode(), head)
        return hmac.digest(self._key, context + body, hashlib.sha256).hex().encode()


def _check_secret(secret: object) -> bytes | None:
    # The value stays out of the errors: they are logged.
    wanted = "give a long random string or bytes, or None to sign nothing"
    if secret is None:
        return None
    if not isinstance(secret, str | bytes):
        raise InvalidJobTypeError(f"secret is of type {type(secret).__name__}; {wanted}")
    if not secret:
        raise InvalidJobError(f"secret is empty; {wanted}")
    try:
        return secret.encode() if isinstance(secret, str) else secret
    except UnicodeEncodeError:
        raise InvalidJobError(f"secret has half of a surrogate pair; {wanted}") from None
