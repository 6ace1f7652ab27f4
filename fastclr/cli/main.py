"""`fastclr COMMAND …`: finds the command, and turns the user's errors into one line."""

import importlib
import os
import sys
import traceback
import warnings

from pipelines.system.output import LenientOutput, lenient_output

COMMANDS = {
    "convert": "a folder of images, or a data set, into one .beton file",
    "info": "what a .beton file holds",
    "preview": "a contact sheet of the augmented views of a file",
    "train": "SimCLR pre-training by a recipe",
    "evaluate": "weighted kNN and linear probe of a trained encoder",
    "doctor": "what can run here, how fast, and what would make the rest run",
    "bench": "measure the parts, in images per second",
    "demo": "the whole way in two minutes, with a report",
}
LONG_COMMANDS = {"convert", "train", "evaluate", "bench", "demo"}
"""Commands that go on working when nobody reads what they print."""


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, what in COMMANDS.items()]
    hint = "`fastclr COMMAND --help` lists a command's arguments."
    return "\n".join(
        ["usage: fastclr COMMAND [arguments] [--debug]\n       fastclr --version", "", *lines, "", hint]
    )


def _warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Ours as one line, without the place in the code that gave it."""
    from pipelines.errors import CorruptSample

    if issubclass(category, CorruptSample):
        return f"fastclr: {message}\n"
    return _formatwarning(message, category, filename, lineno, line)


_formatwarning = warnings.formatwarning


def _reason(error: Exception) -> str:
    """One line that says what is wrong."""
    if isinstance(error, IsADirectoryError) and error.filename:
        return f"{error.filename} is a folder, where a file is needed; `fastclr convert` makes a .beton file of one"
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        makes = (
            "; `fastclr convert` makes one"
            if isinstance(error, FileNotFoundError) and ".beton" in where
            else ""
        )
        return f"{error.strerror}{where}{makes}"
    return " ".join(str(error).split()) or type(error).__name__


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns its exit code: 0 well, 2 the user's error, 130 Ctrl-C, 1 a bug of ours."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    argv = [argument for argument in argv if argument != "--debug"]
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if argv else 2
    name, *rest = argv
    if name == "--version":
        from fastclr import __version__

        print(f"fastclr {__version__}")
        return 0
    if name not in COMMANDS:
        print(f"fastclr: no command {name!r}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    if name in LONG_COMMANDS and not isinstance(sys.stdout, LenientOutput):
        with lenient_output():
            return main([*argv, *(["--debug"] if debug else [])])
    warnings.formatwarning = _warning
    try:
        command = importlib.import_module(f"fastclr.cli.{name}")
        return command.main(rest) or 0
    except KeyboardInterrupt:
        print("\nfastclr: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `fastclr info FILE | head`: the reader has gone, there is nobody to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        from pipelines.errors import EngineUnavailable

        if debug:
            traceback.print_exc()
        elif isinstance(error, (ValueError, OSError, EngineUnavailable)):
            print(f"fastclr {name}: {_reason(error)}", file=sys.stderr)
        else:
            traceback.print_exc()
            print(f"fastclr {name}: this is a bug in fastclr, please report it", file=sys.stderr)
            return 1
        return 2


if __name__ == "__main__":
    sys.exit(main())
