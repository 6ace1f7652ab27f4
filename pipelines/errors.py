"""What engines raise when they can't run here."""


class EngineUnavailable(RuntimeError):
    """The engine's library or hardware is missing here; the message says what installs it."""
