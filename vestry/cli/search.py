"""`vestry search`: the nearest passages of an owner's documents and of shareable sources."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from vestry.cli.options import JsonOption, OwnerOption
from vestry.cli.output import Output, duration, printable
from vestry.client import Vestry
from vestry.lanes import Privacy
from vestry.search.hits import Hit, Hits

SNIPPET_CHARACTERS: Final = 400
"""Characters of a passage that are printed."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        "search",
        rich_help_panel="Search",
        epilog="Example: vestry search 'trouble sleeping' --owner u17 --source diary --limit 3",
    )(search)


def search(
    *,
    query: Annotated[str, typer.Argument(metavar="QUERY", help="Text to search for by meaning.")],
    owner: OwnerOption,
    source: Annotated[
        list[str] | None,
        typer.Option(
            help="Search only this source of the owner, or shareable source of any owner. "
            "Repeatable. Default: all sources of the owner.",
            show_default=False,
        ),
    ] = None,
    library: Annotated[
        list[str] | None,
        typer.Option(
            help="Also search this shareable source of any owner. Repeatable.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, max=1000, help="Most passages to print.")
    ] = 5,
    privacy: Annotated[
        Privacy,
        typer.Option(
            case_sensitive=False,
            help="private: search all documents of the owner. shareable: search only the shareable "
            "ones; a cloud model may then process the query.",
        ),
    ] = Privacy.PRIVATE,
    space: Annotated[
        str | None, typer.Option(help="Embedding space. Default: the workers' setting.")
    ] = None,
    rerank: Annotated[
        bool | None,
        typer.Option(
            "--rerank/--no-rerank",
            help="Rerank the nearest passages. Default: if the workers have a reranker.",
            show_default=False,
        ),
    ] = None,
    timeout: Annotated[float, typer.Option(min=0, help="Most seconds to wait.")] = 30.0,
    as_json: JsonOption = False,
) -> None:
    """Search an owner's documents by meaning. Private text of other owners is never read.

    An interactive job embeds the query; neither the query's text nor its vector is kept.
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
            # Without sources, an owner with nothing to search is more likely a misspelt id.
            known_owner=not (source or library),
            timeout=timeout,
            rerank=rerank,
        )
    out = Output(as_json=as_json)
    document = {
        "hits": [_hit_document(hit) for hit in hits],
        "space": hits.space,
        "degraded": hits.degraded,
        "reason": hits.reason,
        "reranked": hits.reranked,
        "queue_s": round(hits.queue_s, 4),
        "embedding_s": round(hits.embedding_s, 4),
        "database_s": round(hits.database_s, 4),
        "rerank_s": round(hits.rerank_s, 4),
    }
    out.emit(document, lambda console: _print_hits(console, hits))


def _hit_document(hit: Hit) -> dict[str, Any]:
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


def _print_hits(console: Console, hits: Hits) -> None:
    if not hits:
        console.print("Nothing found.")
    for rank, hit in enumerate(hits, 1):
        # The date is preferred: a document's id may be only a digest of its text.
        label = hit.date or hit.document
        head = Text.assemble(
            (f"{rank:>3}. ", "bold"),
            (f"{hit.score:.3f}  ", "cyan"),
            (_rerank_score(hit), "magenta"),
            (f"{printable(label)}  ", "bold"),
            (f"{hit.source}, {printable(hit.owner)}", "dim"),
        )
        console.print(head)
        text = "(text not kept)" if hit.text is None else snippet(hit.text)
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


def snippet(text: str, length: int = SNIPPET_CHARACTERS) -> str:
    """The beginning of a passage as one paragraph, safe to print."""
    line = " ".join(printable(text).split())
    if len(line) <= length:
        return line
    cut = line[:length].rsplit(" ", 1)[0]
    return f"{cut} …"
