"""`vestry models`: the catalogue and what of it is at hand; pulling a model through Ollama."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from inference.backends.ollama_http import connect
from inference.catalogue.schema import ModelEntry
from inference.errors import InferenceError, ModelMissing
from inference.routing.model_registry import configuration
from vestry.cli.errors import CommandError, ExitCode
from vestry.cli.options import JsonOption
from vestry.cli.output import Output, table
from workers.home import default_home
from workers.model_servers.inventory import (
    InventoryError,
    ModelInventory,
    ModelState,
    load_settings,
    probe_all,
    running_stack,
)
from workers.model_servers.plan import DEFAULT_OLLAMA_URL

GB = 1_000_000_000
RUNTIME = "ollama_http"
PULL_S = 3600.0
"""Between two words of an Ollama that fetches; it may also check what it has fetched."""


def register(app: typer.Typer) -> None:
    """Add the commands to the `vestry` command line."""
    models = typer.Typer(help="The catalogue's models: what is at hand, and getting more.")
    models.command("list")(list_models)
    models.command("pull")(pull)
    app.add_typer(models, name="models", rich_help_panel="Workers", no_args_is_help=True)


def list_models(as_json: JsonOption = False) -> None:
    """List the catalogue: what serves each model, and whether it answers, has it, and has room."""
    output = Output(as_json=as_json)
    try:
        found = probe_all(*load_settings(), running_stack(default_home()))
    except InventoryError as error:
        raise CommandError("catalogue", str(error)) from None
    rows = [_row(model) for model in found.models]
    document = {
        "models": rows,
        "memory": {"of": found.memory.of, "total": found.memory.total, "free": found.memory.free},
    }
    output.emit(document, lambda console: _show(console, found, rows))


def pull(
    name: Annotated[str, typer.Argument(help="A model of the catalogue that Ollama serves.")],
    as_json: JsonOption = False,
) -> None:
    """Have Ollama fetch a model of the catalogue."""
    output = Output(as_json=as_json)
    try:
        settings, catalogue = load_settings()
    except InventoryError as error:
        raise CommandError("catalogue", str(error)) from None
    model = next((entry for entry in catalogue.models if entry.name == name), None)
    if model is None:
        there = ", ".join(entry.name for entry in catalogue.models)
        raise CommandError("unknown_model", f"The catalogue has no model {name}; it has: {there}.")
    backend = catalogue.backend(model.backend)
    if backend.runtime != RUNTIME:
        get = f"; to get it: {model.get}" if model.get else ""
        raise CommandError("not_pulled", f"{name} is not pulled: {backend.name} serves it{get}.")
    found = running_stack(default_home()).get("backends", {})
    url = (
        settings.backends.get(backend.name)
        or found.get(backend.name)
        or backend.url
        or DEFAULT_OLLAMA_URL
    )
    told = backend.model_copy(update={"url": url, "timeout_s": PULL_S})
    made = connect(configuration({}, {})(told))
    try:
        _pull(made.pull(model), model, output)
    except InferenceError as error:
        missing = isinstance(error, ModelMissing)
        code = ExitCode.USAGE if missing else ExitCode.UNAVAILABLE
        raise CommandError(error.code, f"{name} was not pulled from {url}: {error}", code) from None
    finally:
        made.close()
    output.emit(
        {"model": name, "pulled": True, "from": url},
        lambda console: console.print(Text(f"{name} is there.")),
    )


def _pull(steps: Any, model: ModelEntry, output: Output) -> None:
    console = output.notes
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=console,
    )
    with bar if console.is_terminal else nullcontext():
        task = bar.add_task(model.name, total=None)
        last = ""
        for doing, done, total in steps:
            bar.update(task, description=doing or model.name, completed=done, total=total or None)
            if not console.is_terminal and doing != last:
                output.note(f"{model.name}: {doing}")
                last = doing


def _row(model: ModelState) -> dict[str, Any]:
    entry, backend = model.entry, model.backend
    return {
        "name": entry.name,
        "backend": backend.entry.name,
        "locality": backend.entry.locality,
        "kinds": list(entry.kinds),
        "tasks": entry.tasks if isinstance(entry.tasks, str) else list(entry.tasks),
        "quantization": entry.quantization,
        "enabled": backend.enabled,
        "reachable": backend.reachable if backend.enabled else None,
        "present": model.present,
        "bytes": model.needs,
        "fits": model.fits,
        "ready": model.ready,
        "get": entry.get,
        "about": entry.about,
    }


def _show(console: Console, found: ModelInventory, rows: list[dict[str, Any]]) -> None:
    shown = [
        (
            row["name"],
            f"{row['backend']} ({row['locality']})",
            ", ".join(row["kinds"]),
            None if row["bytes"] is None else f"{row['bytes'] / GB:.1f} GB",
            row["fits"],
            _state(row),
        )
        for row in rows
    ]
    console.print(table(("model", "served by", "kinds", "#memory", "fits", "state"), shown))
    room = found.memory
    memory = f"Memory of the {room.of}: {room.total / GB:.1f} GB, {room.free / GB:.1f} GB free."
    console.print(Text(f"\n{memory}"))
    wanting = [row for row in rows if row["get"] and not row["ready"]]
    if wanting:
        console.print(Text("To get the others:"))
    for row in wanting:
        console.print(Text(f"  {row['name']}: {row['get']}"))


def _state(row: dict[str, Any]) -> str:
    if not row["enabled"]:
        return "not in use"
    if not row["reachable"]:
        return "away"
    if row["present"] is False:
        return "not there"
    return "ready" if row["ready"] else "too large"
