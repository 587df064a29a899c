"""Each wall alone stops some leaks, and no single wall is needed to keep a private text inside."""

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
    Wall.PROCESS: {"called_directly", "called_through_a_backend", "local_name_resolves_outside"},
    Wall.KEYS: {"misrouted", "sent_in_message", "read_by_query"},
    Wall.ROWS: {"misrouted", "sent_in_message", "read_by_query"},
    Wall.BROKER: {"sent_in_message"},
    Wall.NETWORK: {"called_directly", "called_through_a_backend", "local_name_resolves_outside"},
}
"""The ways that each wall alone stops, as docs/privacy.md says."""


@pytest.fixture(scope="module")
def marker() -> Marker:
    return Marker()


@pytest.fixture(scope="module")
def lab(marker: Marker) -> Iterator[Lab]:
    with migrated_home() as home, laboratory(home, marker.token("prompt")) as lab:
        yield lab


def escaped(lab: Lab, marker: Marker, off: frozenset[Wall], *, role: bool = True) -> set[str]:
    """The ways by which the text reached the cloud's endpoint or, with `role`, its logins."""
    leaks = set()
    for name, way in WAYS.items():
        with lab.without(off):
            with suppress(*EXPECTED):
                way(lab)
            received = bytes(lab.endpoint.received)
            if role:
                received += bytes(lab.seen) + _message_bodies(bytes(lab.seen))
        if any(needle in received for needle in marker.needles().values()):
            leaks.add(name)
    return leaks


def _message_bodies(seen: bytes) -> bytes:
    """Celery's bodies are base64 inside JSON."""
    bodies = re.findall(rb'"body": "([A-Za-z0-9+/=]*)"', seen)
    return b"".join(map(base64.b64decode, bodies))


def test_without_walls_every_way_leaks(lab: Lab, marker: Marker) -> None:
    """So the walls are what stops them in the other tests."""
    assert escaped(lab, marker, ALL) == set(WAYS)


def test_with_all_walls_no_way_leaks(lab: Lab, marker: Marker) -> None:
    assert escaped(lab, marker, frozenset()) == set()


@pytest.mark.parametrize("wall", Wall)
def test_without_one_wall_no_way_leaks(lab: Lab, marker: Marker, wall: Wall) -> None:
    assert escaped(lab, marker, frozenset({wall})) == set()


@pytest.mark.parametrize("wall", Wall)
def test_one_wall_alone_stops_the_documented_ways(lab: Lab, marker: Marker, wall: Wall) -> None:
    assert set(WAYS) - escaped(lab, marker, ALL - {wall}) == STOPS[wall]


def test_egress_without_a_record_is_refused_even_for_a_cloud_worker(
    lab: Lab, marker: Marker
) -> None:
    """The process wall alone: a cloud worker cannot send a text that it should never have read."""
    assert "misrouted" not in escaped(lab, marker, ALL - {Wall.PROCESS}, role=False)
    assert "misrouted" in escaped(lab, marker, ALL, role=False)
