"""What engines raise when they can't run here, and say of samples that can't be decoded."""


class CorruptSample(RuntimeWarning):
    """A sample could not be decoded, and another stands in its place."""


class EngineUnavailable(RuntimeError):
    """The engine's library or hardware is missing here; the message says what installs it."""
