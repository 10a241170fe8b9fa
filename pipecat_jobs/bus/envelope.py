"""Envelopes of messages on the wire: sender, number and signature.

With a secret, a process reads only messages of processes that know the secret. The signature covers
the channel, the purpose of the message, its sender, its number and its body. A recorded message can
still be sent again to a process that has not read it; TLS and ACLs prevent that, because they keep
other programs away from the server.
"""

import hashlib
import hmac
from dataclasses import dataclass

from pipecat_jobs._protocol.recent import Recent
from pipecat_jobs.errors import InvalidJobError, InvalidJobTypeError, UnreadableMessageError

_VERSION = b"2"
_UNSIGNED = b"-"
#: The most senders whose last numbers are kept. Beyond that, the least recent ones are dropped.
_MOST_SENDERS = 4096


@dataclass(frozen=True, slots=True)
class OpenedMessage:
    """A message from an envelope."""

    #: The id of the process that sent it.
    sender: str
    #: Its number among the messages of that process, larger than that of each earlier one.
    number: int
    #: The encoded message.
    body: bytes


class Envelopes:
    """Seals messages into envelopes, and opens the envelopes of this channel.

    Example::

        from pipecat_jobs.bus.envelope import Envelopes

        envelopes = Envelopes("session-42", secret="a long random string")
        sealed = envelopes.seal("urgent", "process-1", 1, b"hello")
        assert envelopes.open("urgent", sealed).body == b"hello"
    """

    def __init__(self, channel: str, *, secret: str | bytes | None = None):
        self._key = _check_secret(secret)
        self._channel = channel.encode()
        self._places: Recent[tuple[str, str], int] = Recent(_MOST_SENDERS)

    def seal(self, purpose: str, sender: str, number: int, body: bytes) -> bytes:
        """Seal a message into an envelope, which :meth:`open` opens for the same purpose only."""
        head = b"%s %s %d" % (_VERSION, sender.encode(), number)
        return b"%s %s\n%s" % (head, self._signature(purpose, head, body), body)

    def open(self, purpose: str, sealed: bytes, *, in_order: bool = True) -> OpenedMessage:
        """Open an envelope, or raise :class:`UnreadableMessageError` if it was not sealed for this.

        With ``in_order``, a number must be larger than the last one of its sender and purpose.
        """
        line, newline, body = sealed.partition(b"\n")
        head, _, signature = line.rpartition(b" ")
        try:
            version, sender_name, place = head.split(b" ")
            sender, number = sender_name.decode("ascii"), int(place)
        except ValueError as error:
            raise UnreadableMessageError(f"not an envelope: {error}") from error
        if not newline or version != _VERSION:
            raise UnreadableMessageError(f"an envelope of version {version!r}, not {_VERSION!r}")
        if not hmac.compare_digest(signature, self._signature(purpose, head, body)):
            raise UnreadableMessageError(f"not signed with this channel's secret, from '{sender}'")
        if in_order:
            last = self._places.get((sender, purpose))
            if last is not None and number <= last:
                raise UnreadableMessageError(f"number {number} of '{sender}' was read before")
            self._places.remember((sender, purpose), number)
        return OpenedMessage(sender, number, body)

    def _signature(self, purpose: str, head: bytes, body: bytes) -> bytes:
        if self._key is None:
            return _UNSIGNED
        context = b"%d:%s%s\n%s\n" % (len(self._channel), self._channel, purpose.encode(), head)
        return hmac.digest(self._key, context + body, hashlib.sha256).hex().encode()


def _check_secret(secret: object) -> bytes | None:
    # Errors are logged, so they must not contain the secret.
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
