"""`fastclr COMMAND …`: find the command, and turn the user's errors into one line."""

import importlib
import io
import os
import sys
import traceback
import warnings
from contextlib import nullcontext, suppress
from typing import TextIO

from pipelines.system.jit import announce_compiling
from pipelines.system.output import lenient_output
from pipelines.system.private_folder import private_folder
from pipelines.system.terminal import one_line, printable

COMMANDS = {
    "convert": "a folder of images, or a data set, into one .beton file",
    "info": "what a .beton file holds",
    "preview": "a contact sheet of the augmented views of a file",
    "train": "SimCLR pre-training by a recipe",
    "finetune": "a classifier from a trained encoder, on all labels or a fraction of them",
    "evaluate": "weighted kNN and linear probe of a trained encoder",
    "embed": "features of every image, as .npz or .parquet",
    "export": "an encoder for torchvision, timm, ONNX, TorchScript or Hugging Face",
    "doctor": "what can run here, how fast, and what would make the rest run",
    "bench": "measure the parts, in images per second",
    "speedrun": "how good an encoder in how short a time: rungs, records, tables",
    "demo": "all steps in a few minutes, with a report",
}
LONG_COMMANDS = {"convert", "train", "finetune", "evaluate", "embed", "bench", "speedrun", "demo"}
"""Commands that go on working when their output can't be written any more."""
MAX_MESSAGE = 2000
"""Maximum length of an error or a warning that is printed, in characters; longer ones are shortened."""


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit code: 0 success, 2 the user's error, 130 Ctrl-C, 1 a bug of ours."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    argv = [argument for argument in argv if argument != "--debug"]
    _escape_what_cannot_be_encoded()
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if argv else 2
    name, *rest = argv
    if name == "--version":
        from fastclr import __version__

        print(f"fastclr {__version__}")
        return 0
    if name not in COMMANDS:
        _complain(f"fastclr: no command {name!r}; there are {', '.join(COMMANDS)}")
        return 2
    warnings.formatwarning = _format_warning
    _keep_caches_without_a_home()
    if os.environ.get("LOCAL_RANK", "0") == "0":
        announce_compiling(lambda text: _complain(f"fastclr: {text}"))
    try:
        with lenient_output() if name in LONG_COMMANDS else nullcontext():
            code = importlib.import_module(f"fastclr.cli.{name}").main(rest) or 0
            _flush(sys.stdout)
            return code
    except SystemExit as stop:  # tyro printed the help (no code) or an error of the arguments (2)
        if not isinstance(stop.code, int) or not stop.code:
            raise
        return stop.code
    except KeyboardInterrupt:
        _complain("\nfastclr: stopped")
        return 130
    except BrokenPipeError:  # `fastclr info FILE | head`: the reader of our output has gone
        _discard(sys.stdout)
        return 1
    except Exception as error:
        return _report(error, name, debug)


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, what in COMMANDS.items()]
    hint = "`fastclr COMMAND --help` lists a command's arguments."
    return "\n".join(
        ["usage: fastclr COMMAND [arguments] [--debug]\n       fastclr --version", "", *lines, "", hint]
    )


def _escape_what_cannot_be_encoded() -> None:
    """Print characters that the encoding of the terminal or the log lacks as escapes, instead of raising."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _keep_caches_without_a_home() -> None:
    """Keep the caches of matplotlib and Triton in a private folder if the home folder can't be written.

    matplotlib would warn in every run, and Triton would not compile.
    """
    home = os.path.expanduser("~")  # "~" if the system does not know the user
    if os.path.isdir(home) and os.access(home, os.W_OK | os.X_OK):
        return
    for variable, name in (("MPLCONFIGDIR", "matplotlib"), ("TRITON_CACHE_DIR", "triton")):
        if variable not in os.environ and (folder := private_folder(name)) is not None:
            os.environ[variable] = str(folder)


def _report(error: Exception, command: str, debug: bool) -> int:
    """Print what is wrong, and return the exit code: 2 if the user can fix it, 1 for a bug of ours."""
    from pipelines.errors import EngineUnavailable

    by_user = isinstance(error, (ValueError, OSError, EngineUnavailable))
    if debug or not by_user:
        _complain("".join(traceback.format_exception(error)).rstrip("\n"))
    if not by_user:
        _complain(f"fastclr {command}: this is a bug in fastclr, please report it")
    elif not debug:
        _complain(f"fastclr {command}: {_reason(error)}")
    return 2 if by_user else 1


def _reason(error: Exception) -> str:
    """Return what is wrong, on one line."""
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
    return one_line(error)


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Return our own warnings as one line without the place in the code, and others as Python formats them."""
    from fastclr.config import IgnoredSetting
    from fastclr.renamed import RenamedSetting
    from pipelines.errors import CorruptSample

    if issubclass(category, (CorruptSample, IgnoredSetting, RenamedSetting)):
        return f"fastclr: {printable(message, MAX_MESSAGE)}\n"
    return f"{_printable_lines(_python_format(message, category, filename, lineno, line))}\n"


_python_format = warnings.formatwarning


def _printable_lines(text: str) -> str:
    return "\n".join(printable(line, MAX_MESSAGE) for line in text.rstrip("\n").split("\n"))


def _complain(text: str) -> None:
    """Print to stderr, and ignore that it is closed or full."""
    try:
        print(_printable_lines(text), file=sys.stderr, flush=True)
    except (OSError, ValueError):
        _discard(sys.stderr)


def _flush(stream: TextIO | None) -> None:
    """Write what is still buffered, so that an error of the stream is raised now and not when Python exits."""
    if stream is None:
        return
    try:
        stream.flush()
    except OSError:
        _discard(stream)
        raise


def _discard(stream: TextIO | None) -> None:
    """Redirect a stream to the null device: Python flushes it at exit, which would fail once more."""
    if stream is None:
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        # a stream without a descriptor, as in a notebook, needs no redirection
        with suppress(OSError, ValueError):
            os.dup2(nowhere, stream.fileno())
    finally:
        os.close(nowhere)


if __name__ == "__main__":
    sys.exit(main())
