"""`python -m workers.stack.compose_secrets DIRECTORY`: the secrets that compose.yaml mounts, made once.

One 0600 file each, random; files that are there already stay as they are. Back up `keyring.json`
apart from the database: without it private content cannot be opened.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from models.bootstrap import ROLES
from vestry.crypto.keyring import KeyRing
from workers.home import write_private
from workers.stack.processes import FLOWER_USER
from workers.stack.valkey import PRIVACIES, USERS, _rules

SUPERUSER_FILE = "postgres"
ACL_FILE = "users.acl"
KEYRING_FILE = "keyring.json"
ENVIRONMENT_FILE = "env"
FLOWER_PORT = 5555
PASSWORD_FILES = (
    SUPERUSER_FILE,
    *ROLES,
    *(f"valkey_{user}" for user in USERS),
    *(f"flower_{privacy}" for privacy in PRIVACIES),
    *(f"llama_{privacy}" for privacy in PRIVACIES),
)

UNPRIVILEGED = 10_001
"""The account in the containers when root makes the files; otherwise it is whoever makes them."""


def make(directory: Path) -> tuple[int, int]:
    """Make what is missing in `directory`.

    Returns:
        User and group id that the containers must run as to read the files.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in PASSWORD_FILES:
        if not (directory / name).exists():
            write_private(directory / name, secrets.token_urlsafe(32))
    if not (directory / KEYRING_FILE).exists():
        KeyRing.generate(directory / KEYRING_FILE)
    write_private(directory / ACL_FILE, _acl(directory))
    for privacy in PRIVACIES:
        password = (directory / f"flower_{privacy}").read_text(encoding="utf-8")
        write_private(directory / f"flower_{privacy}.py", _flower(password))
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        uid = gid = UNPRIVILEGED
    write_private(
        directory / ENVIRONMENT_FILE,
        f"VESTRY_SECRETS={directory.resolve()}\nVESTRY_UID={uid}\nVESTRY_GID={gid}\n"
        "COMPOSE_PROFILES=cpu\n",
    )
    if os.geteuid() == 0:
        for file in (directory, *directory.iterdir()):
            os.chown(file, uid, gid)
    return uid, gid


def _acl(directory: Path) -> str:
    """Valkey's users, as the embedded broker has them; passwords as digests."""
    lines = ["user default off resetkeys resetchannels -@all"]
    for user in USERS:
        password = (directory / f"valkey_{user}").read_bytes()
        lines.append(f"user {user} on #{hashlib.sha256(password).hexdigest()} {_rules(user)}")
    return "\n".join(lines) + "\n"


def _flower(password: str) -> str:
    """Flower's configuration: a file, since its arguments are for everybody to see."""
    return (
        f"basic_auth = [{f'{FLOWER_USER}:{password}'!r}]\n"
        f"address = '0.0.0.0'\nport = {FLOWER_PORT}\nread_only = True\npersistent = False\n"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the files and say how to start."""
    parser = argparse.ArgumentParser(description="Make the secrets that compose.yaml mounts.")
    parser.add_argument("directory", type=Path)
    directory = parser.parse_args(arguments).directory
    make(directory)
    sys.stdout.write(f"docker compose --env-file {directory / ENVIRONMENT_FILE} up --build\n")


if __name__ == "__main__":
    main()
