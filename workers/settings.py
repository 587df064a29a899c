"""Every setting of a process, from its environment (prefix VESTRY_), read once and checked."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import quote, urlsplit, urlunsplit

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from inference.remote.local_network import Network, networks
from vestry.crypto.keyring_source import COMMAND, DESCRIPTOR, FILE
from vestry.lanes import LANES, Pool


class Settings(BaseSettings):
    """What one process was told. Times are in seconds."""

    model_config = SettingsConfigDict(
        env_prefix="VESTRY_", extra="ignore", hide_input_in_errors=True
    )

    database_url: str = ""
    database_password_file: Path | None = None
    broker_url: str = ""
    broker_password_file: Path | None = None
    keyring_file: Path | None = None
    """The key ring; private workers only. It may be a command's output, or an inherited descriptor."""
    keyring_command: str = ""
    keyring_fd: int | None = Field(None, ge=3)
    privacy: Literal["private", "shareable"] | None = None
    lanes: Annotated[tuple[str, ...], NoDecode] = ()
    slots: int = Field(2, ge=1, le=64)
    """Batches in flight per process: one computes while another reads or writes."""
    threads: int | None = Field(None, ge=1)
    nice: int = Field(0, ge=0, le=19)
    ready_file: Path | None = None
    scratch: Path | None = None
    """Where the worker's directory for temporary files is made; by default where those go."""
    log_level: str = "INFO"

    lease_s: float = Field(60.0, gt=0)
    heartbeat_s: float = Field(15.0, gt=0)
    max_run_s: float = Field(900.0, gt=0)
    """No attempt is kept alive for longer than this, however well its heart beats."""
    batch_jobs: int = Field(256, ge=1)
    batch_s: float = Field(4.0, gt=0)
    """A bulk batch is meant to take about this long, by what was measured so far."""
    interactive_batch_jobs: int = Field(8, ge=1)
    backoff_cap_s: float = Field(300.0, gt=0)
    """Longest wait before a retry; the n-th waits a random part of 2**n seconds up to this."""
    keep_jobs_s: float = Field(7 * 86400.0, gt=0)
    """How long a finished job and its receipts are kept."""
    window: int = Field(4, ge=1)
    """Hints kept in a lane's queue, per slot."""
    poll_s: float = Field(1.0, gt=0)
    """How often an idle worker looks for work without a hint."""
    deaf_s: float = Field(60.0, gt=0)
    """How long work may lie there untouched by an idle worker; then its process ends itself."""

    embedding_backend: str = Field(
        "sentence-transformers", pattern=r"^(sentence-transformers|echo|\w+(\.\w+)+)$"
    )
    """`echo`, or a runtime module that takes its place, is for tests and benchmarks."""
    embedding_model: str = ""
    device: str = "auto"

    catalogue: Path | None = None
    """The catalogue's file; None for the one that is shipped."""
    backends: Annotated[Mapping[str, str | None], NoDecode] = Field(default_factory=dict)
    """Backends enabled besides those that the catalogue enables, with a URL where it is another."""
    backend_keys: Annotated[Mapping[str, str], NoDecode] = Field(default_factory=dict)
    """Backend to the 0600 file with its API key."""
    tessdata: Path | None = None
    """Directory with Tesseract's traineddata; None for the packaged English and German."""
    ocr_languages: str = ""
    """What scans are read as where a job does not say, such as `eng+deu`; empty for English."""
    rerank_model: str = ""
    """Directory of a cross-encoder for reranking; empty for what the catalogue says."""
    local_networks: Annotated[tuple[Network, ...], NoDecode] = ()
    """What counts as our own besides the loopback interface; private text goes nowhere else."""
    cloud_budget_usd: Decimal | None = Field(None, ge=0)
    """What clouds may cost a day (UTC); beyond it they count as away."""
    breaker_failures: int = Field(3, ge=1)
    breaker_cooldown_s: float = Field(5.0, gt=0)
    breaker_longest_s: float = Field(300.0, gt=0)
    """After so many failures in a row a backend is left alone, for so long, at most for so long."""

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
        pairs = [part.partition("=") for part in value.replace(",", " ").split()]
        return {name: told or None for name, _, told in pairs}

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        for name in self.lanes:
            if name not in LANES:
                raise ValueError(f"VESTRY_LANES names no lane: {name}; lanes: {', '.join(LANES)}")
            if self.privacy is not None and LANES[name].privacy != self.privacy:
                raise ValueError(f"a {self.privacy} worker cannot serve the lane {name}")
        pools = {LANES[name].pool for name in self.lanes}
        if Pool.CLOUD in pools and len(pools) > 1:
            raise ValueError("a worker for the cloud serves cloud lanes alone")
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
        """Where the key ring comes from, as `vestry.key_source` reads it."""
        return {
            FILE: str(self.keyring_file or ""),
            COMMAND: self.keyring_command,
            DESCRIPTOR: "" if self.keyring_fd is None else str(self.keyring_fd),
        }

    @property
    def key_prefix(self) -> str:
        """The class's broker namespace."""
        return key_prefix(self.privacy or "shareable")


def key_prefix(privacy: str) -> str:
    """The prefix of every broker key of one privacy class; its ACL user may touch no other."""
    return f"vestry.{privacy}."


def _with_password(url: str, file: Path | None) -> str:
    parts = urlsplit(url)
    if file is None or parts.password:
        return url
    secret = quote(file.read_text(encoding="utf-8").strip(), safe="")
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{parts.username or ''}:{secret}@{host}"))
