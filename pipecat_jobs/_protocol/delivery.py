"""What a bus may assume of how a worker takes its messages."""


class IgnoresOthers:
    """Base of the mixin, so that a bus can tell its methods from those of a bot builder.

    Where a class derives from this directly, its ``on_bus_message()`` and
    ``accepts_bus_message()`` ignore messages for other workers. A class further down may change
    that.
    """


class CarriesNotes:
    """Base of a bus that delivers a message with everything that is attached to it."""
