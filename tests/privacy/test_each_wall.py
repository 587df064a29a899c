"""Each wall alone stops some leaks, and no single wall is needed to keep a private text inside."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.cluster_template import migrated_home
from tests.privacy.lab import EXPECTED, WAYS, Lab, Wall, laboratory, may_create_networks
from tests.privacy.needles import Marker

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not may_create_networks(), reason="only root may create network namespaces"),
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
"""The ways that each wall stops by itself, by docs/privacy.md."""


@pytest.fixture(scope="module")
def marker() -> Marker:
    return Marker()


@pytest.fixture(scope="module")
def lab(marker: Marker) -> Iterator[Lab]:
    with migrated_home() as home, laboratory(home, marker.token("prompt")) as lab:
        yield lab


def leaking(lab: Lab, marker: Marker, off: frozenset[Wall], *, logins: bool = True) -> set[str]:
    """The ways by which the text reached the cloud's endpoint or, with `logins`, its logins."""
    leaks = set()
    for name, way in WAYS.items():
        with lab.without(off):
            with suppress(*EXPECTED):
                way(lab)
            received = bytes(lab.endpoint.received)
            if logins:
                received += bytes(lab.seen) + _message_bodies(bytes(lab.seen))
        if any(needle in received for needle in marker.needles().values()):
            leaks.add(name)
    return leaks


def _message_bodies(seen: bytes) -> bytes:
    """Celery's bodies are base64 inside JSON."""
    bodies = re.findall(rb'"body": "([A-Za-z0-9+/=]*)"', seen)
    return b"".join(map(base64.b64decode, bodies))


def test_without_walls_every_way_leaks(lab: Lab, marker: Marker) -> None:
    """Therefore in the other tests the walls stop them."""
    assert leaking(lab, marker, ALL) == set(WAYS)


def test_with_all_walls_no_way_leaks(lab: Lab, marker: Marker) -> None:
    assert leaking(lab, marker, frozenset()) == set()


@pytest.mark.parametrize("wall", Wall)
def test_without_one_wall_no_way_leaks(lab: Lab, marker: Marker, wall: Wall) -> None:
    assert leaking(lab, marker, frozenset({wall})) == set()


@pytest.mark.parametrize("wall", Wall)
def test_one_wall_alone_stops_the_documented_ways(lab: Lab, marker: Marker, wall: Wall) -> None:
    assert set(WAYS) - leaking(lab, marker, ALL - {wall}) == STOPS[wall]


def test_egress_without_a_record_is_refused_even_for_a_cloud_worker(
    lab: Lab, marker: Marker
) -> None:
    """The process wall alone: a cloud worker cannot send a private text, even after reading it."""
    assert "misrouted" not in leaking(lab, marker, ALL - {Wall.PROCESS}, logins=False)
    assert "misrouted" in leaking(lab, marker, ALL, logins=False)
