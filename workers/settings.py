"""Settings of a worker, dispatcher or reconciler: VESTRY_ variables, read once and checked."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import quote, urlsplit, urlunsplit

import psycopg
from psycopg.conninfo import conninfo_to_dict
from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from inference.remote.local_network import Network, networks
from vestry.crypto.keyring import COMMAND, DESCRIPTOR, FILE
from vestry.lanes import LANES, Pool
from workers.setting_names import parse_pairs, reject_renamed


class Settings(BaseSettings):
    """Settings of one process. Times are in seconds."""

    model_config = SettingsConfigDict(
        env_prefix="VESTRY_", extra="ignore", hide_input_in_errors=True
    )

    database_url: str = ""
    database_password_file: Path | None = None
    broker_url: str = ""
    broker_password_file: Path | None = None
    keyring_file: Path | None = None
    """The key ring, private workers only: a file, a command's output or an inherited descriptor."""
    keyring_command: str = ""
    keyring_fd: int | None = Field(None, ge=3)
    privacy: Literal["private", "shareable"] | None = None
    lanes: Annotated[tuple[str, ...], NoDecode] = ()
    slots: int = Field(2, ge=1, le=64)
    """Batches in flight per lane and kind: one computes while another reads or writes."""
    threads: int | None = Field(None, ge=1)
    nice: int = Field(0, ge=0, le=19)
    ready_file: Path | None = None
    temp_dir: Path | None = None
    """Parent of the worker's private temporary directory; by default TMPDIR, else memory."""
    log_level: str = "INFO"

    lease_s: float = Field(60.0, gt=0)
    heartbeat_s: float = Field(15.0, gt=0)
    max_run_s: float = Field(900.0, gt=0)
    """Longest run of an attempt: after this its lease is no longer extended."""
    batch_jobs: int = Field(256, ge=1)
    batch_s: float = Field(4.0, gt=0)
    """Target duration of a bulk batch, sized by the rates measured so far."""
    interactive_batch_jobs: int = Field(8, ge=1)
    backoff_cap_s: float = Field(300.0, gt=0)
    """Longest wait before a retry; the n-th retry waits a random part of 2**n seconds up to this."""
    keep_jobs_s: float = Field(7 * 86400.0, gt=0)
    """Retention of a finished job and its receipts."""
    hints_per_slot: int = Field(4, ge=1)
    """Hints kept in a lane's broker queue, per slot."""
    poll_s: float = Field(1.0, gt=0)
    """Polling interval of an idle worker."""
    stall_timeout_s: float = Field(60.0, gt=0)
    """How long a runnable job may wait while a worker is idle before the watchdog ends the process."""

    embedding_backend: str = Field(
        "sentence-transformers", pattern=r"^(sentence-transformers|echo|\w+(\.\w+)+)$"
    )
    """`echo`, or a runtime module that replaces it, is for tests and benchmarks."""
    embedding_model: str = ""
    device: str = "auto"

    catalogue: Path | None = None
    """The catalogue file; None for the shipped one."""
    backends: Annotated[Mapping[str, str | None], NoDecode] = Field(default_factory=dict)
    """Backends enabled besides those that the catalogue enables, each with its URL or None."""
    backend_keys: Annotated[Mapping[str, str], NoDecode] = Field(default_factory=dict)
    """Backend to the 0600 file with its API key."""
    tessdata: Path | None = None
    """Directory with Tesseract's traineddata; None for the packaged English and German."""
    ocr_languages: str = ""
    """Default languages of scans, such as `eng+deu`; empty for English."""
    rerank_model: str = ""
    """Directory of a cross-encoder for reranking; empty for the catalogue's."""
    local_networks: Annotated[tuple[Network, ...], NoDecode] = ()
    """Local networks besides the loopback interface; private text is sent nowhere else."""
    cloud_budget_usd: Decimal | None = Field(None, ge=0)
    """Spending limit of all clouds per day (UTC); above it they count as unavailable."""
    breaker_failures: int = Field(3, ge=1)
    breaker_cooldown_s: float = Field(5.0, gt=0)
    breaker_max_cooldown_s: float = Field(300.0, gt=0)
    """A circuit breaker opens after `breaker_failures` consecutive failures; the cool-down doubles from
    `breaker_cooldown_s` up to `breaker_max_cooldown_s`."""

    @model_validator(mode="before")
    @classmethod
    def _reject_renamed(cls, values: object) -> object:
        reject_renamed(os.environ)
        return values

    @field_validator(
        "database_password_file",
        "broker_password_file",
        "keyring_file",
        "ready_file",
        "temp_dir",
        "catalogue",
        "tessdata",
        mode="before",
    )
    @classmethod
    def _empty_is_unset(cls, value: object) -> object:
        return None if value == "" else value

    @field_validator("log_level")
    @classmethod
    def _check_level(cls, value: str) -> str:
        if value.upper() not in logging.getLevelNamesMapping():
            raise ValueError("VESTRY_LOG_LEVEL: must be DEBUG, INFO, WARNING or ERROR")
        return value

    @field_validator("lanes", mode="before")
    @classmethod
    def _split_lanes(cls, value: object) -> object:
        return tuple(filter(None, value.split(","))) if isinstance(value, str) else value

    @field_validator("local_networks", mode="before")
    @classmethod
    def _parse_networks(cls, value: object) -> object:
        return networks(value) if isinstance(value, str) else value

    @field_validator("backends", "backend_keys", mode="before")
    @classmethod
    def _split_pairs(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return {name: value or None for name, value in parse_pairs(value).items()}

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        for name in self.lanes:
            if name not in LANES:
                raise ValueError(
                    f"VESTRY_LANES: there is no lane {name}; there are: {', '.join(LANES)}"
                )
            if self.privacy is not None and LANES[name].privacy != self.privacy:
                raise ValueError(
                    f"VESTRY_LANES: a {self.privacy} worker cannot serve the lane {name}; remove it"
                )
        pools = {LANES[name].pool for name in self.lanes}
        if Pool.CLOUD in pools and len(pools) > 1:
            raise ValueError(
                "a cloud worker serves cloud lanes only: give the others to another worker"
            )
        if self.heartbeat_s > self.lease_s / 2:
            raise ValueError("VESTRY_HEARTBEAT_S must be at most half of VESTRY_LEASE_S")
        return self

    @property
    def database(self) -> str:
        """The database URL with its password in place."""
        return _with_password(self.database_url, self.database_password_file)

    @property
    def broker(self) -> str:
        """The broker URL with its password in place."""
        return _with_password(self.broker_url, self.broker_password_file)

    @property
    def keyring(self) -> dict[str, str]:
        """Source of the key ring, in the form of `vestry.crypto.keyring`."""
        return {
            FILE: str(self.keyring_file or ""),
            COMMAND: self.keyring_command,
            DESCRIPTOR: "" if self.keyring_fd is None else str(self.keyring_fd),
        }


class _GivenSettings(Settings):
    """Settings from arguments only, without the environment."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the base class's parameters
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


_FIELD_RULES: Final = {
    "backend_keys": "must be NAME=FILE pairs",
    "embedding_backend": "must be sentence-transformers, echo or the name of a module",
}
_TYPE_RULES: Final = {
    "decimal_parsing": "must be a number",
    "finite_number": "must be a number",
    "float_parsing": "must be a number",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "int_from_float": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a whole number",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
}
"""Pydantic's error type to the rest of the sentence."""


def read_settings(process: str, required: tuple[str, ...] = ()) -> Settings:
    """Read the settings of this process from its environment.

    Args:
        process: name that begins each sentence.
        required: fields that may not be empty.

    Raises:
        SystemExit: with one sentence per fault and status 1; none quotes a URL.
    """
    try:
        settings = Settings()
    except ValidationError as error:
        faults = setting_faults(error)
    else:
        missing = [name for name in required if not getattr(settings, name)]
        faults = [f"VESTRY_{name.upper()} is not set" for name in missing]
        faults += _connection_faults(settings)
    if faults:
        raise SystemExit("\n".join(f"{process}: {fault}" for fault in faults))
    return settings


def check_values(values: Mapping[str, str]) -> list[str]:
    """One sentence for each fault of VESTRY_ variables, without those of the environment."""
    fields: dict[str, Any] = {
        name.removeprefix("VESTRY_").lower(): value for name, value in values.items()
    }
    try:
        _GivenSettings(**fields)
    except ValidationError as error:
        return setting_faults(error)
    return []


def setting_faults(error: ValidationError) -> list[str]:
    """One sentence for each fault, without pydantic's text."""
    return [_sentence(fault) for fault in error.errors(include_url=False, include_input=False)]


def _sentence(fault: Any) -> str:
    context = fault.get("ctx", {})
    if fault["type"] == "value_error":  # raised by a validator of this module
        return " ".join(str(context["error"]).split())
    field = str(fault["loc"][0])
    rule = _FIELD_RULES.get(field) or _TYPE_RULES.get(fault["type"], "has no valid value")
    numbers = {
        name: f"{value:g}" if isinstance(value, float) else value for name, value in context.items()
    }
    return f"VESTRY_{field.upper()}: {rule.format(**numbers)}"


def _connection_faults(settings: Settings) -> list[str]:
    faults = []
    for name, form in (
        ("database", "postgresql://USER@HOST/DATABASE"),
        ("broker", "redis://USER@HOST:PORT/0"),
    ):
        try:
            url = getattr(settings, name)
            if name == "database":
                conninfo_to_dict(url)
            elif url:
                _ = urlsplit(url).port
        except OSError:
            faults.append(f"VESTRY_{name.upper()}_PASSWORD_FILE: the file cannot be read")
        except (ValueError, psycopg.Error):
            faults.append(f"VESTRY_{name.upper()}_URL: must be a URL such as {form}")
    return faults


def key_prefix(privacy: str) -> str:
    """Prefix of every broker key of one privacy class; the class's broker user may use no other."""
    return f"vestry.{privacy}."


def _with_password(url: str, file: Path | None) -> str:
    parts = urlsplit(url)
    if file is None or parts.password:
        return url
    secret = quote(file.read_text(encoding="utf-8").strip(), safe="")
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{parts.username or ''}:{secret}@{host}"))
