"""`vestry up` and `vestry down`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, Group, RenderableType
from rich.text import Text

from vestry.cli.errors import CommandError, ExitCode, failure_from
from vestry.cli.options import JsonOption
from vestry.cli.output import Output, table
from workers.home import Home, HomeInUseError, default_home
from workers.setting_names import parse_pair
from workers.stack.background import BackgroundStack, running_in, start_background, sweep
from workers.stack.dev_stack import ensure_keyring, prepare_database
from workers.stack.embedded_stack import FLOWER_USER, EmbeddedStack, StackOptions
from workers.stack.server_dir import orphans
from workers.stack.settings import check_settings, check_tunables, inherited_environment
from workers.stack.supervisor import StartError, Supervisor

__all__ = ["BackgroundStack", "register", "start_background"]

HomeOption = Annotated[
    Path | None,
    typer.Option("--home", help="Data directory; VESTRY_HOME or .vestry/ by default."),
]


def register(app: typer.Typer) -> None:
    """Add the commands to the `vestry` command line."""
    app.command("up", rich_help_panel="Workers")(up)
    app.command("down", rich_help_panel="Workers")(down)


def up(
    *,
    home: HomeOption = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Return when everything is ready; end with `down`.")
    ] = False,
    flower: Annotated[bool, typer.Option("--flower/--no-flower", help="Run Flower.")] = True,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", help="Besides the servers run this process only; repeatable."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting for every process, VESTRY_NAME=VALUE; repeatable."),
    ] = None,
    ollama: Annotated[
        str | None,
        typer.Option(
            "--ollama",
            metavar="auto|off|URL",
            help="Ollama server to use; auto probes its default URL. Also VESTRY_OLLAMA.",
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", help="Seconds for everything to be ready.")
    ] = 300.0,
    as_json: JsonOption = False,
) -> None:
    """Run Postgres, Valkey, dispatcher, workers and Flower; Ctrl-C drains."""
    output = Output(as_json=as_json)
    directory = Home(home or default_home())
    _check_directory(directory.path)
    values = _settings(settings or []) | ({"VESTRY_OLLAMA": ollama} if ollama else {})
    options = StackOptions(values, flower, tuple(only or ()))
    if detach:
        try:
            stack = start_background(
                directory.path,
                options.settings,
                flower=flower,
                only=options.only,
                timeout_s=timeout,
            )
        except StartError as error:
            raise CommandError("not_started", str(error), ExitCode.UNAVAILABLE) from None
        report_orphans(output)
        state = stack.state()
        output.emit(_document(state, stack.client), lambda c: _show(c, state, stack.client))
    else:
        _foreground(directory, options, timeout, output)


def down(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Drain and stop the stack that runs in a home."""
    output = Output(as_json=as_json)
    directory = (home or default_home()).resolve()
    running = running_in(directory)
    if running is not None:
        running.stop()
    swept = sweep(directory)
    stopped = running is not None or swept > 0
    message = f"Stopped {directory}." if stopped else f"Nothing runs in {directory}."
    output.emit({"stopped": stopped, "home": str(directory)}, lambda c: c.print(Text(message)))


def _foreground(home: Home, options: StackOptions, timeout: float, output: Output) -> None:
    home.create()
    try:
        home.lock()
    except HomeInUseError as error:
        raise CommandError("already_running", str(error), ExitCode.UNAVAILABLE) from None
    try:
        stack = EmbeddedStack(home, options)
        specs = stack.specs()
    except (OSError, RuntimeError, ValueError) as error:
        home.unlock()
        raise CommandError("not_started", str(error), ExitCode.UNAVAILABLE) from None

    def prepare() -> None:
        try:
            prepare_database(stack.postgres)
            ensure_keyring(home)
        except Exception as error:
            # Any error ends the start; errors of migrations have no content.
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise StartError(f"the database could not be prepared: {reason[0]}") from error
        stack.write_client_file()

    supervisor = Supervisor(
        home,
        specs,
        prepare_stage=prepare,
        watch=stack.keys.refresh,
        isolation=stack.accounts.why_not,
        notify=output.note,
    )
    supervisor.catch_signals()
    report_orphans(output)
    for note in stack.models.notes:
        output.note(f"{note}.")
    output.note(f"Starting in {home.path} …")
    try:
        supervisor.start(timeout)
        if not supervisor.draining:
            state = supervisor.document()
            client = stack.client_document()
            output.emit(_document(state, client), lambda c: _show(c, state, client))
            supervisor.run()
        output.note("Draining …")
    except StartError as error:
        raise CommandError("not_started", str(error), ExitCode.UNAVAILABLE) from None
    finally:
        home.client.unlink(missing_ok=True)
        supervisor.drain()
        home.unlock()


def report_orphans(output: Output) -> None:
    """Note the server directories whose home no longer exists."""
    for directory, home in orphans().items():
        output.note(
            f"{directory} has the data of the home {home}, which does not exist: "
            "remove it, unless that home will be restored."
        )


def _check_directory(path: Path) -> None:
    existing = next(part for part in (path, *path.parents) if part.exists())
    if not existing.is_dir():
        raise CommandError("usage", f"{existing} is not a directory; choose another --home")


def _settings(pairs: list[str]) -> dict[str, str]:
    settings = {}
    for pair in pairs:
        name, value = parse_pair(pair)
        if value is None or not name.startswith("VESTRY_"):
            raise CommandError("usage", f"--set takes VESTRY_NAME=VALUE, not {pair!r}")
        settings[name] = value
    try:
        check_settings(settings)
    except ValueError as error:
        raise CommandError("usage", f"--set: {error}") from None
    try:
        check_tunables(inherited_environment() | settings)
    except ValueError as error:
        source = "--set" if any(name in str(error) for name in settings) else "environment"
        raise CommandError("usage", f"{source}: {error}") from None
    return settings


def _document(state: dict[str, Any], client: dict[str, Any]) -> dict[str, Any]:
    """The document of `--json`, without passwords."""
    processes = [
        {key: value for key, value in process.items() if key != "identity"}
        for process in state["processes"]
    ]
    return {
        "home": state["home"],
        "ready": state["ready"],
        "supervisor_pid": state["supervisor"]["pid"],
        "processes": processes,
        "flower": client["flower"],
        "models": {"backends": client["models"]["backends"], "notes": client["models"]["notes"]},
    }


def _show(console: Console, state: dict[str, Any], client: dict[str, Any]) -> None:
    rows = [
        (p["name"], str(p["pid"]), "\n".join(p["lanes"]) or None, p["address"] or None, p["state"])
        for p in state["processes"]
    ]
    own = ("supervisor", str(state["supervisor"]["pid"]), None, None, "ready")
    lines: list[RenderableType] = [
        table(("process", "#pid", "lanes", "address", "state"), [own, *rows]),
        Text(),
    ]
    for name, flower in client["flower"].items():
        where = f"{flower['url']}  user {FLOWER_USER}, password in {flower['password_file']}"
        lines.append(Text(f"Flower, {name}: {where}"))
    lines += [Text(f"Models: {note}") for note in client["models"]["notes"]]
    lines.append(Text(f"Logs: {Path(state['home']) / 'logs'}    To stop: Ctrl-C, or `vestry down`"))
    console.print(Group(*lines))


def main() -> int:
    """Run only these two commands: `python -m workers.stack.commands up`."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    register(app)
    try:
        app(standalone_mode=False)
    except Exception as error:
        failure = failure_from(error)
        Output(as_json="--json" in sys.argv).fail(failure)
        return int(failure.exit_code)
    return 0


if __name__ == "__main__":
    sys.exit(main())
