"""The part of Google Cloud Storage's JSON protocol that gs:// paths need, in memory. No usable emulator exists."""

import itertools
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

_OBJECTS = re.compile(r"/storage/v1/b/([^/]+)/o/?(.*)")
_TIME = "2025-01-01T00:00:00.000Z"
TOKEN = "the-fake-service's-token"


@dataclass
class FakeGoogle:
    """Buckets, objects by bucket and name with their generation, and uploads under way by number."""

    buckets: set[str]
    page: int
    anonymous: bool = True
    objects: dict[tuple[str, str], tuple[bytes, int]] = field(default_factory=dict)
    uploads: dict[str, tuple[str, str, bytearray]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    @contextmanager
    def running(self) -> Iterator[str]:
        """Serves inside the block; gives the address."""
        handler = type("Handler", (_Handler,), {"fake": self})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def metadata(self, bucket: str, name: str) -> dict[str, str]:
        data, generation = self.objects[bucket, name]
        times = {"timeCreated": _TIME, "updated": _TIME}
        return {"name": name, "size": str(len(data)), "generation": str(generation), **times}


class _Handler(BaseHTTPRequestHandler):
    fake: FakeGoogle
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle(self) -> None:
        # Clients break connections too.
        with suppress(ConnectionError):
            super().handle()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _serve(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        address = urlsplit(self.path)
        self.parameters = {key: values[0] for key, values in parse_qs(address.query).items()}
        with self.fake.lock:
            status, body, headers = self._answer(address.path)
        self.send_response_only(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_DELETE = _serve

    def _answer(self, path: str) -> tuple[int, bytes, dict[str, str]]:
        if path == "/oauth2/v4/token":
            return 200, json.dumps({"access_token": TOKEN, "expires_in": 3600}).encode(), {}
        if not self.fake.anonymous and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return 401, b"", {}
        if path == "/session":
            return self._continue_upload()
        found = _OBJECTS.fullmatch(path.removeprefix("/upload"))
        bucket = unquote(found[1] if found else path.rpartition("/")[2])
        if bucket not in self.fake.buckets:
            return 404, b"", {}
        if not found:
            return 200, b"{}", {}
        if path.startswith("/upload"):
            return self._start_upload(bucket)
        return self._object(bucket, unquote(found[2])) if found[2] else self._list(bucket)

    def _object(self, bucket: str, name: str) -> tuple[int, bytes, dict[str, str]]:
        if (bucket, name) not in self.fake.objects:
            return 404, b"", {}
        if self.command == "DELETE":
            del self.fake.objects[bucket, name]
            return 204, b"", {}
        if self.parameters.get("alt") != "media":
            return 200, json.dumps(self.fake.metadata(bucket, name)).encode(), {}
        data, _ = self.fake.objects[bucket, name]
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"])
        assert asked
        start, end = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
        if start >= len(data):
            return 416, b"", {}
        return 206, data[start : end + 1], {"Content-Range": f"bytes {start}-{end}/{len(data)}"}

    def _list(self, bucket: str) -> tuple[int, bytes, dict[str, str]]:
        prefix, delimiter = self.parameters.get("prefix", ""), self.parameters.get("delimiter")
        entries = {}
        for owner, name in sorted(self.fake.objects):
            if owner == bucket and name.startswith(prefix):
                head, cut, _ = name[len(prefix) :].partition(delimiter) if delimiter else (name[len(prefix) :], "", "")
                entries[prefix + head + cut] = bool(cut)
        names = [name for name in sorted(entries) if name > self.parameters.get("pageToken", "")]
        shown = names[: min(self.fake.page, int(self.parameters.get("maxResults", self.fake.page)))]
        items = [self.fake.metadata(bucket, name) for name in shown if not entries[name]]
        prefixes = [name for name in shown if entries[name]]
        found: dict[str, object] = {key: value for key, value in (("items", items), ("prefixes", prefixes)) if value}
        if len(shown) < len(names):
            found["nextPageToken"] = shown[-1]
        return 200, json.dumps(found).encode(), {}

    def _start_upload(self, bucket: str) -> tuple[int, bytes, dict[str, str]]:
        number = str(next(self.fake.numbers))
        self.fake.uploads[number] = bucket, json.loads(self.body)["name"], bytearray()
        return 200, b"", {"Location": f"https://storage.googleapis.com/session?upload={number}"}

    def _continue_upload(self) -> tuple[int, bytes, dict[str, str]]:
        number = self.parameters["upload"]
        if number not in self.fake.uploads:
            return 410, b"", {}
        bucket, name, received = self.fake.uploads[number]
        sent = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", self.headers["Content-Range"])
        assert sent
        # A piece whose answer was lost comes again.
        received[int(sent[1] or len(received)) :] = self.body
        if sent[2] == "*":
            return 308, b"", {"Range": f"bytes=0-{len(received) - 1}"}
        assert len(received) == int(sent[2])
        self.fake.objects[bucket, name] = bytes(received), next(self.fake.numbers)
        return 200, json.dumps(self.fake.metadata(bucket, name)).encode(), {}
