"""`vestry models list` and `pull`: the catalogue with the state of each model; Ollama downloads."""

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
    Memory,
    ModelState,
    load_settings,
    probe_all,
    running_stack,
)
from workers.model_servers.plan import DEFAULT_OLLAMA_URL

GB = 1_000_000_000
RUNTIME = "ollama_http"
PULL_S = 3600.0
"""Longest interval between two progress reports of Ollama; it includes the check of a download."""


def register(app: typer.Typer) -> None:
    """Add the commands to the `vestry` command line."""
    models = typer.Typer(
        help="The catalogue's models: which can be used, and how to get the others."
    )
    models.command("list")(list_models)
    models.command("pull")(pull)
    app.add_typer(models, name="models", rich_help_panel="Workers", no_args_is_help=True)


def list_models(as_json: JsonOption = False) -> None:
    """List the catalogue: whether each model's backend is reachable and has it, and its memory."""
    output = Output(as_json=as_json)
    try:
        inventory = probe_all(*load_settings(), running_stack(default_home()))
    except InventoryError as error:
        raise CommandError("catalogue", str(error)) from None
    memory, rows = inventory.memory, [_row(model) for model in inventory.models]
    document = {
        "models": rows,
        "memory": {"of": memory.of, "total": memory.total, "free": memory.free},
    }
    output.emit(document, lambda console: _show(console, memory, rows))


def pull(
    name: Annotated[str, typer.Argument(help="A model of the catalogue that Ollama serves.")],
    as_json: JsonOption = False,
) -> None:
    """Download a model of the catalogue through Ollama."""
    output = Output(as_json=as_json)
    try:
        settings, catalogue = load_settings()
    except InventoryError as error:
        raise CommandError("catalogue", str(error)) from None
    model = next((entry for entry in catalogue.models if entry.name == name), None)
    if model is None:
        names = ", ".join(entry.name for entry in catalogue.models)
        raise CommandError("unknown_model", f"The catalogue has no model {name}; it has: {names}.")
    backend = catalogue.backend(model.backend)
    if backend.runtime != RUNTIME:
        get = f"; to get it: {model.get}" if model.get else ""
        raise CommandError("not_pulled", f"{name} is not pulled: {backend.name} serves it{get}.")
    running = running_stack(default_home()).get("backends", {})
    url = (
        settings.backends.get(backend.name)
        or running.get(backend.name)
        or backend.url
        or DEFAULT_OLLAMA_URL
    )
    entry = backend.model_copy(update={"url": url, "timeout_s": PULL_S})
    server = connect(configuration({}, {})(entry))
    try:
        _pull(server.pull(model), model, output)
    except InferenceError as error:
        missing = isinstance(error, ModelMissing)
        code = ExitCode.USAGE if missing else ExitCode.UNAVAILABLE
        raise CommandError(error.code, f"{name} was not pulled from {url}: {error}", code) from None
    finally:
        server.close()
    output.emit(
        {"model": name, "pulled": True, "from": url},
        lambda console: console.print(Text(f"{name} is downloaded.")),
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


def _show(console: Console, memory: Memory, rows: list[dict[str, Any]]) -> None:
    cells = [
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
    console.print(table(("model", "served by", "kinds", "#memory", "fits", "state"), cells))
    total, free = f"{memory.total / GB:.1f} GB", f"{memory.free / GB:.1f} GB free"
    console.print(Text(f"\nMemory of the {memory.of}: {total}, {free}."))
    available = [row for row in rows if row["get"] and not row["ready"]]
    if available:
        console.print(Text("To get the others:"))
    for row in available:
        console.print(Text(f"  {row['name']}: {row['get']}"))


def _state(row: dict[str, Any]) -> str:
    if not row["enabled"]:
        return "not enabled"
    if not row["reachable"]:
        return "unreachable"
    if row["present"] is False:
        return "not downloaded"
    return "ready" if row["ready"] else "too large"
