"""`fastclr demo`: all steps from images to an evaluated encoder in about three minutes, with a report."""

import tyro

from fastclr.arguments import parse
from pipelines.system.terminal import printable

DESCRIPTION = (
    "All steps in about three minutes: draws pictures of ten shapes (or takes your images), converts, "
    "previews, trains with SimCLR, evaluates before and after, and writes OUT/report.html."
)


def main(argv: list[str]) -> int:
    """Run the demo; exit code 0, or 130 (Ctrl-C) or 143 (SIGTERM) if the training was stopped."""
    from rich.console import Console

    from fastclr.demo.run import Settings, run_demo

    settings = parse(
        Settings, argv, "fastclr demo", description=DESCRIPTION, config=(tyro.conf.OmitArgPrefixes,)
    )
    console = Console(highlight=False)
    result = run_demo(settings, console)
    if result.stopped_by is not None:
        console.print(f"stopped by {result.stopped_by.name}; the demo starts over when it is called again")
        return 128 + result.stopped_by
    if result.scores is not None:
        before, after = result.scores
        console.print(f"\n[bold]kNN {before.knn:.1%} → {after.knn:.1%}[/bold]")
    console.print(f"report: {printable(result.page)}", markup=False, soft_wrap=True)
    return 0
