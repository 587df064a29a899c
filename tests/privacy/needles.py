"""Random tokens, and every encoding in which they are searched for.

All tokens of one `Marker` begin with the same random text: one search finds any of them, truncated or
not.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import secrets
import string
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

ALPHABET = string.ascii_lowercase + string.digits
LENGTH = 20
"""Characters of a marker: 103 bits, so that no base64 of it occurs by chance."""
CHARACTERS = ("utf-8", "utf-16-le", "utf-16-be")
COMPRESSED = ("gzip", "zlib")
MAX_INFLATED_BYTES = 1 << 20
_HEADERS = (b"\x1f\x8b\x08", b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")
"""Headers of gzip, and of zlib at each level."""


@dataclass(slots=True)
class Marker:
    """The beginning of a family of tokens.

    Attributes:
        text: the common beginning of the tokens.
        tokens: each token's field, by token.
    """

    text: str = field(default_factory=lambda: _random(LENGTH))
    tokens: dict[str, str] = field(default_factory=dict)

    def token(self, name: str) -> str:
        """A new token for a named field."""
        token = self.text + _random(8)
        self.tokens[token] = name
        return token

    def needles(self) -> dict[str, bytes]:
        """The bytes to search for, by encoding."""
        return dict(encodings(self.text))

    def fields_in(self, content: bytes) -> list[str]:
        """The names of the fields whose complete tokens are in a content."""
        return sorted(
            {
                name
                for token, name in self.tokens.items()
                if any(needle in content for _, needle in encodings(token))
            }
        )


@dataclass(frozen=True, slots=True)
class Hit:
    """A token found where it must not be."""

    location: str
    where: str
    encoding: str
    fields: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.location}: {self.where}: {', '.join(self.fields) or 'a part'} as {self.encoding}"


def search(location: str, contents: Iterable[tuple[str, bytes]], marker: Marker) -> Iterator[Hit]:
    """Search a location's contents for a marker's tokens, compressed or not."""
    # Some encodings of plain letters are equal: each is searched for once.
    needles = {needle: encoding for encoding, needle in marker.needles().items()}
    for where, content in contents:
        for prefix, plain in (
            ("", content),
            *(("compressed ", part) for part in inflated(content)),
        ):
            for needle, encoding in needles.items():
                if needle in plain:
                    fields = tuple(marker.fields_in(plain))
                    yield Hit(location, where, prefix + encoding, fields)


def detector(markers: Mapping[str, Marker]) -> Callable[[bytes], set[str]]:
    """A function that returns the encodings in a content; each encoding has its own marker."""
    plain = {e: dict(encodings(m.text))[e] for e, m in markers.items() if e not in COMPRESSED}
    packed = {e: m.text.encode() for e, m in markers.items() if e in COMPRESSED}

    def seen(content: bytes) -> set[str]:
        encodings_seen = {e for e, needle in plain.items() if needle in content}
        if packed:
            for part in inflated(content):
                encodings_seen |= {
                    encoding for encoding, needle in packed.items() if needle in part
                }
        return encodings_seen

    return seen


def inflated(content: bytes) -> Iterator[bytes]:
    """Every gzip or zlib stream in a content, decompressed; at most 1 MiB each."""
    view = memoryview(content)  # no copies: random bytes contain many headers
    for header in _HEADERS:
        start = content.find(header)
        while start >= 0:
            # 47: gzip or zlib header, detected automatically.
            stream = zlib.decompressobj(47)
            with contextlib.suppress(zlib.error):
                part = view[start : start + MAX_INFLATED_BYTES]
                if plain := stream.decompress(part, MAX_INFLATED_BYTES):
                    yield plain
            start = content.find(header, start + 1)


def encodings(text: str) -> Iterator[tuple[str, bytes]]:
    """Every form in which `text` (lower-case letters and digits) is searched for, with its name."""
    yield "upper case", text.upper().encode()
    yield "percent-encoding", "".join(f"%{ord(letter):02x}" for letter in text).encode()
    yield "PERCENT-encoding", "".join(f"%{ord(letter):02X}" for letter in text).encode()
    yield "JSON escapes", "".join(f"\\u{ord(letter):04x}" for letter in text).encode()
    yield "JSON ESCAPES", "".join(f"\\u{ord(letter):04X}" for letter in text).encode()
    for characters in CHARACTERS:
        yield from byte_encodings(characters, text.encode(characters))


def byte_encodings(name: str, data: bytes) -> Iterator[tuple[str, bytes]]:
    """Bytes as they are, in hex, and in base64 at any offset in a longer text."""
    yield name, data
    yield f"hex of {name}", data.hex().encode()
    yield f"HEX of {name}", data.hex().upper().encode()
    for shift in range(3):
        encoded = base64.b64encode(bytes(shift) + data)
        # None of these characters depends on the bytes before and after.
        core = encoded[-(-shift * 8 // 6) : (shift + len(data)) * 8 // 6]
        yield f"base64+{shift} of {name}", core
        yield f"url base64+{shift} of {name}", core.translate(bytes.maketrans(b"+/", b"-_"))


def leaked_forms(text: str) -> Mapping[str, bytes]:
    """A text as a leak would write it, by encoding; independent of `encodings`.

    For base64 the text is inside a longer one, as in a message's body.
    """
    forms = {
        "upper case": text.upper().encode(),
        "percent-encoding": b"".join(b"%%%02x" % byte for byte in text.encode()),
        "PERCENT-encoding": b"".join(b"%%%02X" % byte for byte in text.encode()),
        "JSON escapes": b"".join(b"\\u%04x" % byte for byte in text.encode()),
        "JSON ESCAPES": b"".join(b"\\u%04X" % byte for byte in text.encode()),
        "gzip": gzip.compress(f"before {text} after".encode()),
        "zlib": zlib.compress(f"before {text} after".encode()),
    }
    for characters in CHARACTERS:
        data = text.encode(characters)
        forms[characters] = data
        forms[f"hex of {characters}"] = bytes(data).hex().encode()
        forms[f"HEX of {characters}"] = base64.b16encode(data)
        for shift in range(3):
            inside = b"{'\xfe"[:shift] + b'"?>' + data + b"\xff\xfb'}"
            forms[f"base64+{shift} of {characters}"] = base64.standard_b64encode(inside)
            forms[f"url base64+{shift} of {characters}"] = base64.urlsafe_b64encode(inside)
    return forms


def is_text(form: bytes) -> bool:
    """Whether a form can be stored as text; raw UTF-16, for example, has NUL bytes."""
    return b"\0" not in form and form.isascii()


def _random(length: int) -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(length))
