"""`python -m workers.stack.compose_secrets DIRECTORY`: creates the secrets that compose.yaml mounts.

One 0600 file each, random; existing files are kept. Back up `keyring.json` separately from the
database: without it private content cannot be decrypted.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from models.bootstrap import ROLES
from vestry.crypto.keyring import KeyRing
from workers.home import write_private
from workers.stack.embedded_stack import FLOWER_USER
from workers.stack.valkey import PRIVACIES, USERS, acl_file, permissions

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
"""Account of the containers when root creates the files; otherwise it is the creator's own."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Create the files and print the command that starts the containers."""
    parser = argparse.ArgumentParser(description="Create the secrets that compose.yaml mounts.")
    parser.add_argument("directory", type=Path)
    directory = parser.parse_args(arguments).directory
    make(directory)
    sys.stdout.write(f"docker compose --env-file {directory / ENVIRONMENT_FILE} up --build\n")


def make(directory: Path) -> tuple[int, int]:
    """Create the secrets that are missing in a directory.

    Returns:
        User and group id under which the containers can read the files.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in PASSWORD_FILES:
        if not (directory / name).exists():
            write_private(directory / name, secrets.token_urlsafe(32))
    if not (directory / KEYRING_FILE).exists():
        KeyRing.generate(directory / KEYRING_FILE)
    passwords = {user: (directory / f"valkey_{user}").read_text(encoding="utf-8") for user in USERS}
    acl = acl_file(passwords, {user: permissions(user) for user in USERS})
    write_private(directory / ACL_FILE, acl)
    for privacy in PRIVACIES:
        password = (directory / f"flower_{privacy}").read_text(encoding="utf-8")
        write_private(directory / f"flower_{privacy}.py", _flower_config(password))
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


def _flower_config(password: str) -> str:
    """Flower's configuration file: as an argument, the password would be visible to every account."""
    return (
        f"basic_auth = [{f'{FLOWER_USER}:{password}'!r}]\n"
        f"address = '0.0.0.0'\nport = {FLOWER_PORT}\nread_only = True\npersistent = False\n"
    )


if __name__ == "__main__":
    main()
