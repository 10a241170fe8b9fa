"""The envelope of a message on the wire: forged and replayed messages are refused."""

import pytest

from pipecat_jobs.bus.envelope import Envelopes, OpenedMessage
from pipecat_jobs.errors import UnreadableMessageError

SECRET = "correct horse battery staple"


def signed(channel: str = "c", secret: str | bytes | None = SECRET) -> Envelopes:
    return Envelopes(channel, secret=secret)


@pytest.mark.parametrize("secret", [None, SECRET, b"\x00bytes"])
def test_an_opened_envelope_gives_the_message_that_was_sealed(secret):
    body = b"two\nlines \x00\xff"
    sealed = signed(secret=secret).seal("data", "p1", 7, body)
    assert signed(secret=secret).open("data", sealed) == OpenedMessage("p1", 7, body)


@pytest.mark.parametrize(
    "reader", [signed(channel="d"), signed(secret="another"), signed(secret=None)]
)
def test_another_channel_or_another_secret_does_not_open_it(reader: Envelopes):
    sealed = signed().seal("data", "p1", 1, b"body")
    with pytest.raises(UnreadableMessageError, match="not signed with this channel's secret"):
        reader.open("data", sealed)


def test_an_unsigned_message_is_refused_where_a_secret_is_set():
    sealed = signed(secret=None).seal("data", "p1", 1, b"body")
    with pytest.raises(UnreadableMessageError, match="not signed"):
        signed().open("data", sealed)


def test_a_message_is_refused_in_another_place_than_it_was_signed_for():
    sealed = signed().seal("data", "p1", 1, b"body")
    with pytest.raises(UnreadableMessageError, match="not signed"):
        signed().open("urgent", sealed)


def test_an_envelope_with_any_byte_changed_is_refused():
    sealed = signed().seal("data", "p1", 1, b"body")
    for at in range(len(sealed)):
        changed = bytearray(sealed)
        changed[at] ^= 1
        with pytest.raises(UnreadableMessageError):
            signed().open("data", bytes(changed))


def test_a_replayed_message_is_refused():
    reader = signed()
    first, second = (signed().seal("data", "p1", number, b"body") for number in (1, 2))
    reader.open("data", first)
    reader.open("data", second)
    for recorded in (first, second):
        with pytest.raises(UnreadableMessageError, match="was read before"):
            reader.open("data", recorded)
    # Each sender and each purpose has its own sequence.
    assert reader.open("urgent", signed().seal("urgent", "p1", 1, b"body"))
    assert reader.open("data", signed().seal("data", "p2", 1, b"body"))


def test_a_message_that_may_come_out_of_order_does_not_advance_the_sequence():
    reader = signed()
    sealed = signed().seal("job", "p1", 5, b"body")
    assert reader.open("job", sealed, in_order=False) == reader.open("job", sealed, in_order=False)
    assert reader.open("job", sealed).number == 5


@pytest.mark.parametrize(
    "sealed", [b"", b"\n", b"2 p1 1 -", b"1 p1 1 -\nx", b"2 p1 x -\nx", b"2 \xff 1 -\nx"]
)
def test_bytes_that_are_not_an_envelope_are_refused(sealed: bytes):
    with pytest.raises(UnreadableMessageError):
        signed(secret=None).open("data", sealed)


def test_an_empty_secret_is_refused():
    with pytest.raises(ValueError, match="long random string"):
        signed(secret="")
