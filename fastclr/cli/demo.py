"""`fastclr demo`: the whole way in two minutes, with a report."""

from typing import TYPE_CHECKING, Annotated

import tyro

from fastclr.arguments import call

if TYPE_CHECKING:
    from fastclr.demo.run import Settings


def main(argv: list[str]) -> int:
    """Exit codes: 0 well; 130 (Ctrl-C) or 143 (SIGTERM) if the training was stopped."""
    from fastclr.demo.run import Settings

    description = (
        "The whole way in about two minutes: draws pictures of ten shapes (or takes your images), converts, "
        "previews, trains with SimCLR, evaluates before and after, and writes OUT/report.html."
    )

    def demo(settings: Annotated[Settings, tyro.conf.arg(name="")]) -> int:
        return _demo(settings)

    return call(demo, argv, "fastclr demo", description=description, config=(tyro.conf.OmitArgPrefixes,))


def _demo(settings: "Settings") -> int:
    from rich.console import Console

    from fastclr.demo.run import run_demo

    console = Console(highlight=False)
    done = run_demo(settings, console)
    if done.stopped_by is not None:
        console.print(f"stopped by {done.stopped_by.name}; the demo starts over when it is called again")
        return 128 + done.stopped_by
    if done.before.scores and done.after and done.after.scores:
        console.print(f"\n[bold]kNN {done.before.scores.knn:.1%} → {done.after.scores.knn:.1%}[/bold]")
    console.print(f"report: {done.page}")
    return 0
