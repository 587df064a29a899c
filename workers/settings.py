"""Settings of a worker, dispatcher or reconciler: VESTRY_ variables, read once and checked."""

from __future__ import annotations

import os
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import quote, urlsplit, urlunsplit

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

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
