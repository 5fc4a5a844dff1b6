"""A proxy in front of one server of HTTP that does to chosen requests what networks and services do to them."""

import http.client
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import unquote, urlsplit

_BLOCK = 1 << 16
_DRAIN_SECONDS = 0.5
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "proxy-connection"}
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass
class Fault:
    """What is done to requests whose method is `method` and whose path and query, unquoted, match `path`.

    status: answered with `status` and `body`, not forwarded.
    reset, truncate: the connection is broken, or closed as if all were well, after `at` bytes of the body.
    stall: nothing is sent for `seconds` there.
    corrupt: the byte there is changed.
    lose: forwarded, but the answer is dropped.
    Without `at`, reset and stall come before the answer's first byte. Of the matching requests they happen to the
    `first` one (counted from 1) and every `every`-th after it, `times` in all (None: without end).
    """

    action: Literal["status", "reset", "stall", "truncate", "corrupt", "lose"]
    method: str = "GET"
    path: str = ""
    status: int = 503
    body: bytes = b""
    at: int | None = None
    seconds: float = 0.0
    first: int = 1
    every: int = 1
    times: int | None = 1
    matched: int = field(default=0, init=False)
    fired: int = field(default=0, init=False)

    def takes(self, method: str, path: str) -> bool:
        """Whether this request is one of those; counts it."""
        if method != self.method or not re.search(self.path, unquote(path)):
            return False
        self.matched += 1
        due = self.matched >= self.first and (self.matched - self.first) % self.every == 0
        if not due or (self.times is not None and self.fired >= self.times):
            return False
        self.fired += 1
        return True


class Proxy:
    """Forwards to the server at `target`, and does what the faults say."""

    def __init__(self, target: str) -> None:
        self.target = urlsplit(target)
        self.faults: list[Fault] = []
        self.requests: Counter[str] = Counter()
        self.sent = 0
        self.closing = threading.Event()
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def inject(self, *faults: Fault) -> None:
        """From now on these faults, and no others; the requests are counted anew."""
        with self._lock:
            self.faults = list(faults)
            self.requests.clear()

    @contextmanager
    def bypassed(self) -> Iterator[None]:
        """No faults, and nothing is counted, inside the block."""
        with self._lock:
            faults, requests = self.faults, self.requests
            self.faults, self.requests = [], Counter()
        try:
            yield
        finally:
            with self._lock:
                self.faults, self.requests = faults, requests

    def pick(self, method: str, path: str) -> Fault | None:
        """The first fault that takes this request."""
        with self._lock:
            self.requests[method] += 1
            return next((fault for fault in self.faults if fault.takes(method, path)), None)

    def count(self, size: int) -> None:
        """Adds to the bytes that were sent to clients, over all requests."""
        with self._lock:
            self.sent += size

    @contextmanager
    def running(self) -> Iterator["Proxy"]:
        """Serves inside the block."""
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.closing.set()
            self._server.shutdown()
            self._server.server_close()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    proxy: Proxy
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle(self) -> None:
        # Clients break connections too.
        with suppress(ConnectionError):
            super().handle()

    def finish(self) -> None:
        with suppress(OSError):
            super().finish()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.proxy.pick(self.command, self.path)
        if fault and fault.action == "status":
            self._answer(fault.status, [("Content-Length", str(len(fault.body)))])
            if self.command != "HEAD":
                self.wfile.write(fault.body)
            return
        if fault and fault.at is None and fault.action in ("reset", "stall"):
            self._interrupt(fault)
            if fault.action == "reset":
                return
        self._forward(body, fault)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_PATCH = _serve

    def _forward(self, body: bytes, fault: Fault | None) -> None:
        target = self.proxy.target
        with closing(http.client.HTTPConnection(target.hostname or "", target.port, timeout=60)) as upstream:
            # The headers go as they came, Host included: signatures cover it.
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in _HOP_BY_HOP:
                    upstream.putheader(name, value)
            upstream.endheaders(body or None)
            self._relay(upstream.getresponse(), fault)

    def _relay(self, response: http.client.HTTPResponse, fault: Fault | None) -> None:
        if fault and fault.action == "lose":
            response.read()
            self._break()
            return
        headers = [(name, value) for name, value in response.getheaders() if name.lower() not in _HOP_BY_HOP]
        whole = None
        if self.command != "HEAD" and response.length is None:
            whole = response.read()
            headers.append(("Content-Length", str(len(whole))))
        self._answer(response.status, headers)
        self._send_body(iter([whole]) if whole is not None else _blocks(response), fault)

    def _answer(self, status: int, headers: list[tuple[str, str]]) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()

    def _send_body(self, blocks: Iterator[bytes], fault: Fault | None) -> None:
        sent = 0
        for block in blocks:
            if fault and fault.at is not None and sent <= fault.at < sent + len(block):
                before, after = block[: fault.at - sent], block[fault.at - sent :]
                self.wfile.write(before)
                if fault.action == "corrupt":
                    after = bytes([after[0] ^ 1]) + after[1:]
                elif self._interrupt(fault):
                    return
                self.wfile.write(after)
            else:
                self.wfile.write(block)
            sent += len(block)
            self.proxy.count(len(block))

    def _interrupt(self, fault: Fault) -> bool:
        """Waits, or ends the connection; whether it is ended."""
        if fault.action == "stall":
            self.proxy.closing.wait(fault.seconds)
            return False
        if fault.action == "reset":
            # A reset throws away what has arrived and is not read yet: the client gets the time to read it.
            self.proxy.closing.wait(_DRAIN_SECONDS if fault.at else 0)
            self._break()
        else:
            self.close_connection = True
            with suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
        return True

    def _break(self) -> None:
        """Closes so that the other side sees a reset."""
        self.close_connection = True
        with suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            # The server keeps a reference of its own to the socket: only detaching really closes it here.
            socket.close(self.connection.detach())


def _blocks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    while block := response.read(_BLOCK):
        yield block
