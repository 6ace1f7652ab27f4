"""Opens mutated files and checks that each is accepted, or refused by name, within a time limit.

Each test module is also a script: `PYTHONPATH=tests python -m fuzz.test_fuzz_tar --count 2000 --seed 0`.
"""

import argparse
import os
import signal
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fuzz.mutate import Field, mutate


@dataclass(frozen=True)
class Original:
    """A valid file that is mutated."""

    data: bytes
    fields: Sequence[Field] = ()
    """Places that most mutations hit."""


class TooSlowError(BaseException):
    """An attempt took longer than its bound; no `Exception`, so that nothing under test can catch it."""


def fuzz(
    originals: Sequence[Original],
    attempt: Callable[[Path], object],
    file: Path,
    count: int,
    seed: int,
    refusals: tuple[type[Exception], ...] = (ValueError, OSError),
    seconds: float = 10.0,
    extra_bytes: int = 1 << 30,
) -> Counter[str]:
    """Try `count` mutated files; case k mutates original k modulo their number.

    Args:
        attempt: opens (and uses) the file; it succeeds or raises one of `refusals`, in one line with the
            file's name.
        file: where each case is written, one over the other; after a failure it is there.
        seconds: time limit of an attempt.
        extra_bytes: address space that an attempt may add to the process.

    Returns:
        How many were "accepted" and how many "refused".

    Raises:
        AssertionError: a case ended otherwise; the message has the seed and the number of the case.
    """
    outcomes: Counter[str] = Counter()
    for number in range(count):
        original = originals[number % len(originals)]
        file.write_bytes(mutate(original.data, seed, number, original.fields))
        case = f"seed {seed}, case {number} ({file})"
        refusal = None
        try:
            with _time_limit(seconds), _memory_limit(extra_bytes):
                attempt(file)
        except refusals as error:
            refusal = str(error)
        except (Exception, TooSlowError) as error:
            raise AssertionError(f"{case}: {type(error).__name__}\n{traceback.format_exc()}") from error
        outcomes["accepted" if refusal is None else "refused"] += 1
        if refusal is not None:
            assert file.name in refusal, f"{case}: the error does not name the file: {refusal}"
            assert refusal.isprintable(), f"{case}: the error is not one printable line: {refusal!r}"
            assert len(refusal) < 2000, f"{case}: an error of {len(refusal)} characters: {refusal[:200]}"
    return outcomes


def main(kind: str, run: Callable[[Path, int, int], Counter[str]]) -> None:
    """Command line of a fuzz test: `python tests/fuzz/test_fuzz_KIND.py --count 2000 --seed 0`.

    Args:
        kind: what is mutated, for the output.
        run: takes a folder for files, the count and the seed.
    """
    parser = argparse.ArgumentParser(description=f"Opens mutated files of the kind {kind}.")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keeps the file of a failure; default: a temporary one")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="fuzz-"))
    outcomes = run(folder, arguments.count, arguments.seed)
    print(
        f"{kind}: {arguments.count} mutated files, {outcomes['accepted']} accepted, {outcomes['refused']} refused"
    )


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    if not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_: object) -> None:
        raise TooSlowError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _memory_limit(extra_bytes: int) -> Iterator[None]:
    """Limit the address space, so that a false size ends in a MemoryError instead of swapping."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(statm.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + extra_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
