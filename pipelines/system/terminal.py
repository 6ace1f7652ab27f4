"""Makes untrusted text (file names, labels, metadata) safe to print on a terminal."""


def printable(text: object, max_length: int = 500) -> str:
    r"""Return `text` with everything escaped that a terminal would interpret, and shortened if it is very long.

    Control characters, escape sequences, bidirectional overrides and lone surrogates become backslash escapes;
    letters of all languages stay as they are.

    >>> printable("cat\x1b[31m\n")
    'cat\\x1b[31m\\n'
    """
    safe = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in str(text))
    return safe if len(safe) <= max_length else f"{safe[: max_length - 1]}…"
