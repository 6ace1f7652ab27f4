"""The error of an engine that can't run here, and the warning about a sample that can't be decoded."""


class CorruptSample(RuntimeWarning):
    """A sample could not be decoded and was replaced by another one."""


class EngineUnavailable(RuntimeError):
    """The engine's library or hardware is missing here; the message says what installs it."""
