"""gs:// paths against a fake of the service's JSON protocol, through the contexts that jobs use."""

import io
import json
import re
from urllib.parse import unquote

import pytest
import urllib3

from dist_diffusion.errors import StorageError
from dist_diffusion.storage import files, publish


class FakeGoogleStorage:
    """Answers blobfile's requests in place of its connection pool."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.unavailable = 0
        self.forbidden = False

    def request(self, method, url, headers, body=None, preload_content=True, **_):
        if self.forbidden:
            return _response(403)
        if self.unavailable:
            self.unavailable -= 1
            return _response(503)
        path, _, query = url.removeprefix("https://storage.googleapis.com").partition("?")
        parameters = dict(part.split("=", 1) for part in query.split("&") if part)
        if path.startswith("/upload/") or path == "/session":
            return self._upload(method, path, headers, body, parameters)
        name = unquote(path.removeprefix("/storage/v1/b/bucket/o").lstrip("/"))
        if not name:
            return self._list(unquote(parameters.get("prefix", "")))
        if name not in self.objects:
            return _response(404)
        if parameters.get("alt") != "media":
            return _response(200, json.dumps(self._metadata(name)).encode())
        start = int(re.fullmatch(r"bytes=(\d+)-(\d*)", headers["Range"])[1])
        return _response(206, self.objects[name][start:], preload_content)

    def _upload(self, method, path, headers, body, parameters):
        if method == "POST":
            self.uploading = json.loads(body)["name"], b""
            return _response(200, headers={"Location": "https://storage.googleapis.com/session"})
        name, received = self.uploading
        self.uploading = name, received + (body.read() if hasattr(body, "read") else bytes(body))
        if headers["Content-Range"].endswith("/*"):
            return _response(308)
        self.objects[name] = self.uploading[1]
        return _response(200, json.dumps(self._metadata(name)).encode())

    def _list(self, prefix):
        names = [name for name in sorted(self.objects) if name.startswith(prefix)]
        items = [self._metadata(name) for name in names if "/" not in name[len(prefix) :]]
        folders = sorted({prefix + name[len(prefix) :].split("/")[0] + "/" for name in names} - {prefix})
        folders = [folder for folder in folders if any(name.startswith(folder) for name in names)]
        found = {key: value for key, value in (("items", items), ("prefixes", folders)) if value}
        return _response(200, json.dumps(found).encode())

    def _metadata(self, name):
        times = {"timeCreated": "2025-01-01T00:00:00.000Z", "updated": "2025-01-01T00:00:00.000Z"}
        return {"name": name, "size": str(len(self.objects[name])), "generation": "1", **times}


def _response(status, data=b"", preload_content=True, headers=None):
    body = io.BytesIO(data)
    return urllib3.HTTPResponse(body=body, status=status, headers=headers or {}, preload_content=preload_content)


@pytest.fixture
def storage(monkeypatch):
    fake = FakeGoogleStorage()
    monkeypatch.setenv("BLOBFILE_FORCE_GOOGLE_ANONYMOUS_AUTH", "1")
    for writing in (False, True):
        monkeypatch.setattr(files.remote(writing=writing)._conf, "_get_http_pool", lambda: fake)
    return fake


def test_blobfile_traps_are_turned_off():
    for writing in (False, True):
        conf = files.remote(writing=writing)._conf
        assert conf.retry_limit == 10
        assert conf.save_access_token_to_disk is False
        assert conf.use_blind_writes is writing


def test_published_objects_are_read_back(storage):
    data = bytes(range(256)) * 5000
    publish.write_bytes("gs://bucket/run/data.bin", data)
    publish.write_json("gs://bucket/run/sub/a.json", {"a": 1})
    assert storage.objects["run/data.bin"] == data
    assert files.read_bytes("gs://bucket/run/data.bin") == data
    assert files.read_json("gs://bucket/run/sub/a.json") == {"a": 1}
    assert files.size("gs://bucket/run/data.bin") == len(data)
    assert files.exists("gs://bucket/run/data.bin") and not files.exists("gs://bucket/run/absent")
    assert files.is_dir("gs://bucket/run") and not files.is_dir("gs://bucket/absent")
    assert files.list_names("gs://bucket/run") == ["data.bin", "sub"]
    assert files.list_names("gs://bucket/absent") == []
    with files.open_read("gs://bucket/run/data.bin") as stream:
        stream.seek(1000)
        assert stream.read(300) == data[1000:1300]


def test_an_exception_while_writing_publishes_nothing(storage):
    with pytest.raises(RuntimeError), publish.atomic_file("gs://bucket/run/data.bin") as path:
        with open(path, "wb") as stream:
            stream.write(b"half")
        raise RuntimeError("interrupted")
    assert storage.objects == {}


def test_a_short_outage_is_waited_out(storage):
    publish.write_bytes("gs://bucket/a", b"data")
    storage.unavailable = 1
    assert files.read_bytes("gs://bucket/a") == b"data"


def test_remote_failures_name_the_path(storage):
    with pytest.raises(StorageError, match="cannot read gs://bucket/absent"):
        files.read_bytes("gs://bucket/absent")
    storage.forbidden = True
    with pytest.raises(StorageError, match=r"cannot write gs://bucket/a: .*; check the path, the credentials"):
        publish.write_bytes("gs://bucket/a", b"")
    with pytest.raises(StorageError, match="cannot create gs://bucket/a exclusively"):
        publish.create_exclusive("gs://bucket/a", b"")
