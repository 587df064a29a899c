"""`vestry search`: the nearest passages of an owner's documents, and of shareable sources named."""

from __future__ import annotations

import unicodedata
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from vestry.cli.options import JsonOption, OwnerOption
from vestry.cli.output import Output, duration
from vestry.client import Vestry
from vestry.lanes import Privacy
from vestry.search.hits import Hit, Hits

SNIPPET = 400
"""Characters of a passage that a person is shown."""

BIDI_CONTROLS = frozenset(map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A))))
"""Unicode's bidirectional embeddings, overrides and isolates: they reorder what follows them."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        "search",
        rich_help_panel="Search",
        epilog="Example: vestry search 'trouble sleeping' --owner u17 --source diary --limit 3",
    )(search)


def search(
    *,
    query: Annotated[str, typer.Argument(metavar="QUERY", help="What to look for, in words.")],
    owner: OwnerOption,
    source: Annotated[
        list[str] | None,
        typer.Option(
            help="Search this source only: the owner's, or a shareable one of anybody's. Again for "
            "more. Default: everything of the owner's.",
            show_default=False,
        ),
    ] = None,
    library: Annotated[
        list[str] | None,
        typer.Option(
            help="Besides what is searched anyway, this shareable source of anybody's.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000)] = 5,
    privacy: Annotated[
        Privacy,
        typer.Option(
            case_sensitive=False,
            help="private: all of the owner's. shareable: their shareable documents only; a cloud "
            "model may then see the query.",
        ),
    ] = Privacy.PRIVATE,
    space: Annotated[
        str | None, typer.Option(help="Embedding space. Default: the workers' own.")
    ] = None,
    rerank: Annotated[
        bool | None,
        typer.Option(
            "--rerank/--no-rerank",
            help="Have a reranker reread the nearest passages. Default: where the workers have one.",
            show_default=False,
        ),
    ] = None,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait at most.")] = 30.0,
    as_json: JsonOption = False,
) -> None:
    """Search an owner's documents by meaning; nobody else's private text is ever looked at.

    The query is embedded by an interactive job; neither its text nor its vector is kept.
    """
    with Vestry() as vestry:
        hits = vestry.search(
            query,
            owner=owner,
            privacy=privacy,
            sources=[*(source or ()), *(library or ())] or None,
            own_sources=source or None,
            limit=limit,
            space=space,
            # More likely a slip of the pen than a question, where there is nothing to search.
            known_owner=not (source or library),
            timeout=timeout,
            rerank=rerank,
        )
    out = Output(as_json=as_json)
    document = {
        "hits": [_document(hit) for hit in hits],
        "space": hits.space,
        "degraded": hits.degraded,
        "reason": hits.reason,
        "reranked": hits.reranked,
        "queue_s": round(hits.queue_s, 4),
        "embedding_s": round(hits.embedding_s, 4),
        "database_s": round(hits.database_s, 4),
        "rerank_s": round(hits.rerank_s, 4),
    }
    out.emit(document, lambda console: _show(console, hits))


def _document(hit: Hit) -> dict[str, Any]:
    return {
        "owner": hit.owner,
        "source": hit.source,
        "document": hit.document,
        "date": hit.date,
        "score": hit.score,
        "rerank_score": hit.rerank_score,
        "text": hit.text,
        "metadata": hit.metadata,
        "start": hit.start,
        "end": hit.end,
    }


def _show(console: Console, hits: Hits) -> None:
    if not hits:
        console.print("Nothing found.")
    for rank, hit in enumerate(hits, 1):
        # A date says more than an id made from a digest; a reference says more than no date.
        label = hit.date or hit.document
        head = Text.assemble(
            (f"{rank:>3}. ", "bold"),
            (f"{hit.score:.3f}  ", "cyan"),
            (_rerank_score(hit), "magenta"),
            (f"{printable(label)}  ", "bold"),
            (f"{hit.source}, {printable(hit.owner)}", "dim"),
        )
        console.print(head)
        text = "(the text was not kept)" if hit.text is None else snippet(hit.text)
        console.print(Padding(Text(text), (0, 0, 1, 5)), soft_wrap=False)
    timing = (
        f"{duration(hits.embedding_s)} for the query's embedding, "
        f"{duration(hits.database_s)} in the database"
    )
    if hits.rerank_s:
        timing += f", {duration(hits.rerank_s)} for the reranker"
    degraded = "" if hits.reason is None else f"; degraded: {hits.reason}"
    console.print(Text(f"{timing}{degraded}", style="dim"))


def _rerank_score(hit: Hit) -> str:
    return "" if hit.rerank_score is None else f"{hit.rerank_score:+.2f}  "


def snippet(text: str, length: int = SNIPPET) -> str:
    """The beginning of a passage in one paragraph, safe to print."""
    line = " ".join(printable(text).split())
    if len(line) <= length:
        return line
    cut = line[:length].rsplit(" ", 1)[0]
    return f"{cut} …"


def printable(text: str) -> str:
    """Text without controls: a document must not steer the terminal, nor turn its lines around.

    The joiners (U+200C, U+200D) stay: scripts and emoji need them.
    """
    return "".join(
        " "
        if unicodedata.category(character) in {"Cc", "Cs"} or character in BIDI_CONTROLS
        else character
        for character in text
    )
