"""Each wall stops something by itself, and none of them is needed for a private text to stay home."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.cluster_template import migrated_home
from tests.privacy.lab import EXPECTED, WAYS, Lab, Wall, laboratory, may_make_networks
from tests.privacy.needles import Marker

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not may_make_networks(), reason="only root puts a process into a network of its own"
    ),
]

ALL = frozenset(Wall)
STOPS = {
    Wall.TYPES: {"misrouted"},
    Wall.PROCESS: {"called_directly", "called_through_a_backend", "local_elsewhere"},
    Wall.KEYS: {"misrouted", "told_by_message", "read_by_query"},
    Wall.ROWS: {"misrouted", "told_by_message", "read_by_query"},
    Wall.BROKER: {"told_by_message"},
    Wall.NETWORK: {"called_directly", "called_through_a_backend", "local_elsewhere"},
}
"""What each wall stops by itself, as docs/privacy.md says."""


@pytest.fixture(scope="module")
def marker() -> Marker:
    return Marker()


@pytest.fixture(scope="module")
def lab(marker: Marker) -> Iterator[Lab]:
    with migrated_home() as home, laboratory(home, marker.token("prompt")) as lab:
        yield lab


def escaped(lab: Lab, marker: Marker, off: frozenset[Wall], *, role: bool = True) -> set[str]:
    """The ways by which the text came to the cloud's endpoint or, with `role`, to its logins."""
    found = set()
    for name, way in WAYS.items():
        with lab.without(off):
            with suppress(*EXPECTED):
                way(lab)
            got = bytes(lab.endpoint.received)
            if role:
                got += bytes(lab.seen) + _message_bodies(bytes(lab.seen))
        if any(needle in got for needle in marker.needles().values()):
            found.add(name)
    return found


def _message_bodies(got: bytes) -> bytes:
    """Celery's bodies are base64 inside JSON."""
    bodies = re.findall(rb'"body": "([A-Za-z0-9+/=]*)"', got)
    return b"".join(map(base64.b64decode, bodies))


def test_with_all_walls_down_every_way_leads_out(lab: Lab, marker: Marker) -> None:
    """So what stops them below is the walls."""
    assert escaped(lab, marker, ALL) == set(WAYS)


def test_with_all_walls_up_none_does(lab: Lab, marker: Marker) -> None:
    assert escaped(lab, marker, frozenset()) == set()


@pytest.mark.parametrize("wall", Wall)
def test_with_one_wall_down_the_others_hold(lab: Lab, marker: Marker, wall: Wall) -> None:
    assert escaped(lab, marker, frozenset({wall})) == set()


@pytest.mark.parametrize("wall", Wall)
def test_one_wall_alone_stops_what_it_is_said_to(lab: Lab, marker: Marker, wall: Wall) -> None:
    assert set(WAYS) - escaped(lab, marker, ALL - {wall}) == STOPS[wall]


def test_without_a_record_nothing_is_sent_whoever_has_read_it(lab: Lab, marker: Marker) -> None:
    """The process wall alone: what a cloud worker should never have seen, it cannot send."""
    assert "misrouted" not in escaped(lab, marker, ALL - {Wall.PROCESS}, role=False)
    assert "misrouted" in escaped(lab, marker, ALL, role=False)
