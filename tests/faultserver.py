"""A proxy in front of a real server that injects faults on request and records all requests.

    with FaultServer(llama.url, upstream_key=llama.key, key="sesame") as cloud:
        …                                     # serves clients at cloud.url with the key
        cloud.fault = rate_limited("7")       # for all requests from now on
        cloud.next(status(500), cut(2))       # for the next two requests, before `fault`
        cloud.fault = None                    # no fault
        cloud.stop_listening()                # connections are refused, until .listen()
        assert not cloud.received("text")
        [request.at for request in cloud.requests]

Without an upstream it is a fake with a canned response in OpenAI's or Anthropic's protocol. A fault is
independent of the protocol: it changes the lines of the real server's response.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import urlsplit

TIMEOUT_S = 60.0
"""Timeout of the upstream's response, and of a hanging request."""


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """One recorded request.

    Attributes:
        at: time of arrival, in seconds of `time.monotonic()`.
        path: path of the URL.
        body: the whole body.
        fault: name of the injected fault; None without one.
        headers: values by lower-case name.
    """

    at: float
    path: str
    body: bytes = field(repr=False)
    fault: str | None
    headers: dict[str, str] = field(repr=False)

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the body."""
        return hashlib.sha256(self.body).hexdigest()

    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class Reply:
    """A response; each line is sent as one chunk when it is produced."""

    status: int
    headers: dict[str, str]
    lines: Iterable[bytes]
    cut: bool = False
    """Close the connection after the last line, without the end of the response."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Replaces or changes the real server's response."""

    name: str
    reply: Callable[[Callable[[], Reply], threading.Event], Reply]


def status(code: int, body: object = None, **headers: str) -> Fault:
    """An error of this status; names of headers have underscores for hyphens."""
    text = json.dumps(body if body is not None else {"error": {"message": "an injected fault"}})
    fields = {"content-type": "application/json"}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    return Fault(f"status {code}", lambda _real, _closed: Reply(code, fields, [text.encode()]))


def rate_limited(retry_after: str | float | None = None) -> Fault:
    """429, with a Retry-After of this text or number of seconds."""
    return status(429, **({} if retry_after is None else {"retry_after": str(retry_after)}))


def http_date_in(seconds: float) -> str:
    """The time `seconds` from now as an HTTP date, for `rate_limited`."""
    return formatdate(time.time() + seconds, usegmt=True)


def redirect(url: str) -> Fault:
    """Redirect to a URL."""
    return status(307, location=url)


def hang() -> Fault:
    """Read the request and never respond."""

    def reply(_real: Callable[[], Reply], closed: threading.Event) -> Reply:
        closed.wait(TIMEOUT_S)
        return Reply(504, {}, [], cut=True)

    return Fault("hang", reply)


def cut(after: int = 2) -> Fault:
    """Close the connection after this many lines of the response."""
    return Fault(
        "cut", lambda real, _closed: _with_lines(real(), lambda ls: _first(ls, after), True)
    )


def end_early(after: int = 2) -> Fault:
    """End the response regularly after this many lines."""
    return Fault(
        "end early", lambda real, _closed: _with_lines(real(), lambda ls: _first(ls, after))
    )


def empty() -> Fault:
    """200 with an empty body."""
    return end_early(0)


def malformed() -> Fault:
    """Remove the second half of every line with JSON."""

    def broken(lines: Iterable[bytes]) -> Iterator[bytes]:
        for line in lines:
            yield line[: len(line) // 2] + b"\n" if b"{" in line else line

    return Fault("malformed", lambda real, _closed: _with_lines(real(), broken))


def rewrite(old: bytes, new: bytes) -> Fault:
    """Replace a text in the response, for example for a model's refusal."""

    def rewritten(lines: Iterable[bytes]) -> Iterator[bytes]:
        return (line.replace(old, new) for line in lines)

    return Fault("rewrite", lambda real, _closed: _with_lines(real(), rewritten))


def slow(seconds: float) -> Fault:
    """Wait before each line."""

    def delayed(lines: Iterable[bytes]) -> Iterator[bytes]:
        for line in lines:
            time.sleep(seconds)
            yield line

    return Fault("slow", lambda real, _closed: _with_lines(real(), delayed))


class FaultServer:
    """See the module's docstring.

    Args:
        upstream: base URL of the real server; None for canned responses.
        upstream_key: key of the real server, sent in place of the caller's.
        key: key that callers must send; None for no check.
    """

    def __init__(
        self,
        upstream: str | None = None,
        *,
        upstream_key: str | None = None,
        key: str | None = None,
    ) -> None:
        self.fault: Fault | None = None
        self.requests: list[RecordedRequest] = []
        self.key = key
        self._upstream = urlsplit(upstream) if upstream else None
        self._upstream_key = upstream_key
        self._next: deque[Fault | None] = deque()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._port = 0
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        """Base URL, without a path; the same also after `stop_listening` and `listen`."""
        return f"http://127.0.0.1:{self._port}"

    def listen(self) -> None:
        """Accept connections."""
        handler = type("Handler", (_Handler,), {"owner": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), handler)
        self._server.daemon_threads = True
        self._port = self._server.server_address[1]
        self._closed.clear()
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop_listening(self) -> None:
        """Refuse connections, and end hanging requests."""
        self._closed.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def next(self, *faults: Fault | None) -> None:
        """Faults of the next requests, one each; None for no fault."""
        with self._lock:
            self._next.extend(faults)

    def received(self, text: str) -> bool:
        """Whether any request contained this text, plain or escaped as in JSON."""
        forms = {text.encode(), json.dumps(text)[1:-1].encode()}
        return any(form in request.body for request in list(self.requests) for form in forms)

    def calls(self, path: str = "/") -> list[RecordedRequest]:
        """The requests with a body, so without probes, whose path ends with `path`."""
        suffix = path.rstrip("/")
        return [r for r in list(self.requests) if r.body and r.path.rstrip("/").endswith(suffix)]

    def __enter__(self) -> Self:
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_listening()

    def _respond(self, path: str, method: str, headers: dict[str, str], body: bytes) -> Reply:
        with self._lock:
            fault = self._next.popleft() if self._next else self.fault
            name = fault.name if fault else None
            self.requests.append(RecordedRequest(time.monotonic(), path, body, name, headers))
        key = headers.get("x-api-key") or headers.get("authorization", "").removeprefix("Bearer ")
        if self.key is not None and key != self.key:
            return status(401).reply(lambda: Reply(401, {}, []), self._closed)

        def real() -> Reply:
            if self._upstream is None:
                return _canned(path)
            return self._forward(path, method, headers, body)

        return fault.reply(real, self._closed) if fault else real()

    def _forward(self, path: str, method: str, headers: dict[str, str], body: bytes) -> Reply:
        assert self._upstream is not None
        connection = http.client.HTTPConnection(
            self._upstream.hostname or "", self._upstream.port, timeout=TIMEOUT_S
        )
        fields = {name: headers[name] for name in ("content-type", "accept") if name in headers}
        if self._upstream_key is not None:
            fields["authorization"] = f"Bearer {self._upstream_key}"
        connection.request(method, path, body or None, fields)
        response = connection.getresponse()

        def lines() -> Iterator[bytes]:
            try:
                yield from response
            finally:  # also if the caller disconnects: the real server stops then
                connection.close()

        fields = {"content-type": response.headers.get("content-type", "text/plain")}
        return Reply(response.status, fields, lines())


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: FaultServer

    def _serve(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        body = self.rfile.read(length)
        headers = {name.lower(): value for name, value in self.headers.items()}
        reply = self.owner._respond(self.path, self.command, headers, body)
        lines = iter(reply.lines)
        self.close_connection = True
        try:
            self._send(reply, lines)
        except OSError:  # the caller has closed the connection
            pass
        finally:
            getattr(lines, "close", lambda: None)()

    do_GET = do_POST = do_DELETE = _serve  # noqa: N815 - as the base class has them

    def _send(self, reply: Reply, lines: Iterator[bytes]) -> None:
        self.send_response(reply.status)
        for name, value in {**reply.headers, "transfer-encoding": "chunked"}.items():
            self.send_header(name, value)
        self.send_header("connection", "close")
        self.end_headers()
        for line in lines:
            if line:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
                self.wfile.flush()
        if not reply.cut:
            self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def _with_lines(
    reply: Reply, change: Callable[[Iterable[bytes]], Iterator[bytes]], cut_off: bool = False
) -> Reply:
    return Reply(reply.status, reply.headers, change(reply.lines), cut=cut_off)


def _first(lines: Iterable[bytes], count: int) -> Iterator[bytes]:
    """The first `count` non-empty lines."""
    for line in lines:
        if line.strip():
            if not count:
                return
            count -= 1
        yield line


CANNED = "A canned answer."


def _canned(path: str) -> Reply:
    """A short response in the protocol of the path."""
    if path.endswith("/messages"):
        return Reply(200, {"content-type": "text/event-stream"}, _anthropic())
    if path.endswith("/chat/completions"):
        return Reply(200, {"content-type": "text/event-stream"}, _openai())
    return Reply(200, {"content-type": "application/json"}, [b'{"object": "list", "data": []}'])


def _openai() -> Iterator[bytes]:
    delta = {"role": "assistant", "content": CANNED}
    common = {"id": "canned", "object": "chat.completion.chunk", "created": 0, "model": "canned"}
    usage = {"prompt_tokens": 7, "completion_tokens": 4, "total_tokens": 11}
    for choices, more in (
        ([{"index": 0, "delta": delta, "finish_reason": None}], {}),
        ([{"index": 0, "delta": {}, "finish_reason": "stop"}], {}),
        ([], {"usage": usage}),
    ):
        yield f"data: {json.dumps({**common, 'choices': choices, **more})}\n\n".encode()
    yield b"data: [DONE]\n\n"


def _anthropic() -> Iterator[bytes]:
    message = {
        "id": "canned", "type": "message", "role": "assistant", "content": [], "model": "canned",
        "stop_reason": None, "stop_sequence": None, "usage": {"input_tokens": 7, "output_tokens": 0},
    }  # fmt: skip
    block = {"type": "text", "text": ""}
    delta = {"type": "text_delta", "text": CANNED}
    stopped = {"stop_reason": "end_turn", "stop_sequence": None}
    for event in (
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "index": 0, "content_block": block},
        {"type": "content_block_delta", "index": 0, "delta": delta},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": stopped, "usage": {"output_tokens": 4}},
        {"type": "message_stop"},
    ):
        yield f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()
