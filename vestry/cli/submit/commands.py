"""`vestry submit`: the subcommands, with an example of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import typer

from vestry.cli.submit.classification import classification
from vestry.cli.submit.embedding import embedding
from vestry.cli.submit.generation import generation
from vestry.cli.submit.ocr import ocr
from vestry.cli.submit.rerank import rerank

_COMMANDS: Final[tuple[tuple[str, Callable[..., None], str], ...]] = (
    (
        "embedding",
        embedding,
        "vestry submit embedding --text 'Up betimes.' --owner u17 --privacy private --wait",
    ),
    (
        "classification",
        classification,
        (
            "vestry submit classification --text 'I could not pray today.' --label "
            "'faith=prayer, church, doubt' --label 'health=illness and pain' --owner u17 "
            "--privacy private --wait"
        ),
    ),
    (
        "ocr",
        ocr,
        "vestry submit ocr scan.pdf --pages 1-3 --owner u17 --privacy private --wait",
    ),
    (
        "generation",
        generation,
        (
            "vestry submit generation --prompt 'What kept me awake?' --ground --owner u17 "
            "--privacy private --wait"
        ),
    ),
    (
        "rerank",
        rerank,
        (
            "vestry submit rerank --query 'a wet walk' --passage 'Up by water.' --passage "
            "'It rained all day.' --owner u17 --privacy private --wait"
        ),
    ),
)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="Submit one job.", no_args_is_help=False)
    group.callback()(_group)
    for name, command, example in _COMMANDS:
        group.command(name, epilog=f"Example: {example}")(command)
    group.command("classify", hidden=True)(classification)  # alias: a verb
    app.add_typer(group, name="submit", rich_help_panel="Jobs")


def _group() -> None:
    """Submit one job."""
