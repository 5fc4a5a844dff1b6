"""Every function of storage/ on every kind of remote path, against servers that speak the protocols."""

import hashlib
import json
import os
import subprocess
import sys
import tarfile
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from Cryptodome.PublicKey import RSA
from faults.fake_google import TOKEN, FakeGoogle
from faults.proxy import Fault, Proxy
from faults.servers import BUCKET, LIMITS, PAGE, ROOT, Service

from dist_diffusion.errors import StorageError
from dist_diffusion.storage import environment, files, publish

DATA = bytes(range(256)) * 5000
BIG = 20_000_000


def test_files_are_read(service: Service) -> None:
    path, empty = service.place("data.bin", DATA), service.place("empty", b"")
    document = service.place("deep/er/a.json", json.dumps({"a": [1, None]}).encode())
    assert files.is_remote(path)
    assert files.read_bytes(path) == DATA and files.read_bytes(empty) == b""
    assert files.size(path) == len(DATA) and files.size(empty) == 0
    assert files.read_json(document) == {"a": [1, None]}
    assert files.sha256(path) == hashlib.sha256(DATA).hexdigest()
    assert files.exists(path) and files.exists(document) and not files.exists(f"{service.root}/absent")
    assert files.sizes(service.root, ["data.bin", "absent", "empty"]) == {"data.bin": len(DATA), "empty": 0}
    with pytest.raises(StorageError, match=rf"cannot read {service.root}/absent: No such object.*check the path"):
        files.open_read(f"{service.root}/absent")


def test_streams_seek(service: Service, tmp_path: Path) -> None:
    path = service.place("data.bin", DATA)
    with files.open_read(path) as stream:
        assert stream.read(10) == DATA[:10]
        stream.seek(1_200_000)
        assert stream.read(300) == DATA[1_200_000:1_200_300] and stream.tell() == 1_200_300
        stream.seek(-7, os.SEEK_END)
        assert stream.read() == DATA[-7:] and stream.read() == b""
        stream.seek(5)
        assert stream.read() == DATA[5:]
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(__file__, "member.py")
    archived = service.place("a.tar", (tmp_path / "a.tar").read_bytes())
    with files.open_read(archived) as stream, tarfile.open(fileobj=stream) as archive:
        member = archive.extractfile("member.py")
        assert member and member.read() == Path(__file__).read_bytes()


@pytest.mark.parametrize("name", ["a b.txt", "50%.txt", "é~+.txt", "a:b[1]=c&d.txt"])
def test_names_may_hold_what_addresses_escape(store: Service, name: str) -> None:
    path = f"{store.root}/{name}"
    publish.write_bytes(path, b"found")
    assert files.read_bytes(path) == b"found" and files.list_names(store.root) == [name]
    assert files.sizes(store.root, [name]) == {name: 5}
    publish.remove(path)
    assert not files.exists(path)


def test_addresses_of_web_servers_are_escaped_or_plain(reach: Callable[[str], Service]) -> None:
    web = reach("https")
    plain = web.place("a b.txt", b"found")
    assert files.read_bytes(plain) == b"found"
    assert files.read_bytes(plain.replace(" ", "%20")) == b"found"


def test_folders_are_listed_page_by_page(store: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    if store.scheme == "az":
        # Azurite's pages hold 5,000 names, unless asked for fewer; blobfile does not ask.
        azure = pytest.importorskip("blobfile._azure")
        pages = azure.create_page_iterator
        short = lambda *args, params, **rest: pages(*args, params={**params, "maxresults": "4"}, **rest)  # noqa: E731
        monkeypatch.setattr(azure, "create_page_iterator", short)
    names = [f"{number:02d}" for number in range(10)]
    for name in names:
        store.place(f"folder/{name}", name.encode() * int(name))
    store.place("folder/sub/one", b"1")
    store.place(f"folder/{files.TEMPORARY_PREFIX}half", b"")
    store.place("folder-2/other", b"")
    folder = f"{store.root}/folder"
    store.proxy.inject()
    assert files.list_names(folder) == [*names, "sub"] == files.list_names(f"{folder}/")
    assert store.proxy.requests["GET"] > 3, "the listing was not cut into pages"
    assert files.sizes(folder, [*names, "sub", "absent"]) == {name: 2 * int(name) for name in names}
    assert files.list_names(store.root) == ["folder", "folder-2"]
    assert files.is_dir(folder) and files.is_dir(f"{folder}/sub") and files.exists(folder)
    assert not files.is_dir(f"{folder}/01") and not files.is_dir(f"{store.root}/fold")
    assert files.list_names(f"{store.root}/absent") == []


def test_a_marker_of_a_folder_is_no_file_in_it(reach: Callable[[str], Service]) -> None:
    service = reach("s3")
    service.place("folder/a", b"")
    marker = f"{service.proxy.url}/{service.root.removeprefix('s3://')}/folder/"
    urllib.request.urlopen(urllib.request.Request(marker, method="PUT"), timeout=30).close()
    assert files.list_names(f"{service.root}/folder") == ["a"]


def test_large_files_arrive_whole_and_replace_old_ones(store: Service, tmp_path: Path) -> None:
    path, data = f"{store.root}/large.npz", os.urandom(BIG)
    publish.write_bytes(path, b"old")
    with publish.atomic_file(path) as temporary:
        assert temporary.endswith("large.npz")
        Path(temporary).write_bytes(data)
        assert files.read_bytes(path) == b"old"
    assert files.size(path) == BIG and files.read_bytes(path) == data
    assert publish.copy(path, str(tmp_path / "copy")) == hashlib.sha256(data).hexdigest()
    publish.copy(str(tmp_path / "copy"), f"{store.root}/copy")
    assert files.sha256(f"{store.root}/copy") == hashlib.sha256(data).hexdigest()
    assert files.list_names(store.root) == ["copy", "large.npz"]


def test_an_exception_while_writing_publishes_nothing(store: Service) -> None:
    path = f"{store.root}/a.bin"
    with pytest.raises(RuntimeError), publish.atomic_file(path) as temporary:
        Path(temporary).write_bytes(b"half")
        raise RuntimeError("interrupted")
    assert not files.exists(path)


def test_small_and_empty_files_are_written_and_removed(store: Service) -> None:
    document, empty = f"{store.root}/run/a.json", f"{store.root}/run/empty"
    publish.write_json(document, {"b": 1})
    publish.write_json(document, {"b": 2})
    publish.write_bytes(empty, b"")
    assert files.read_json(document) == {"b": 2} and files.size(empty) == 0
    for _ in range(2):
        publish.remove(document)
        publish.remove(empty)
    assert not files.exists(f"{store.root}/run")
    with pytest.raises(StorageError, match=f"cannot create {document} exclusively"):
        publish.create_exclusive(document, b"")


def test_a_missing_bucket_is_named(store: Service) -> None:
    path = store.root.replace(f"/{BUCKET}/", "/mistyped/")
    store.proxy.inject()
    for look in (files.exists, files.is_dir, files.list_names):
        with pytest.raises(StorageError, match=rf"cannot (look up|list) {path}: there is no bucket .*mistyped"):
            look(path)
    with pytest.raises(StorageError, match=rf"cannot read {path}: No such object or bucket; check the path"):
        files.read_bytes(path)
    with pytest.raises(StorageError, match=rf"cannot write {path}: No such object or bucket; check the path"):
        publish.write_bytes(path, b"x")


def test_web_servers_are_only_read_by_name(reach: Callable[[str], Service]) -> None:
    web = reach("https")
    path = web.place("folder/a.bin", b"x")
    folder = f"{web.root}/folder"
    assert not files.is_dir(folder)
    with pytest.raises(StorageError, match=rf"cannot list {folder}: https:// cannot list a folder; name the file"):
        files.list_names(folder)
    for change in (publish.atomic_file(path).__enter__, lambda: publish.remove(path)):
        with pytest.raises(StorageError, match=f"cannot change {path}: https:// is only read; use a local path or one"):
            change()
    assert files.read_bytes(path) == b"x"


SECRETS = """
import logging, sys
from dist_diffusion.errors import StorageError
from dist_diffusion.storage import environment, files, publish
logging.basicConfig(level=logging.DEBUG)
root = sys.argv[1]
publish.write_bytes(root + "/a", bytes(1000))
assert files.read_bytes(root + "/a") == bytes(1000)
try:
    files.read_bytes(root + "/refused")
except StorageError:
    logging.exception("refused")
"""


def run(service: Service, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own."""
    variables = {**os.environ, **service.environment, "PYTHONPATH": str(ROOT), "HOME": str(home)}
    done = subprocess.run([sys.executable, *arguments], env=variables, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done


def test_credentials_are_not_written_anywhere(store: Service, tmp_path: Path) -> None:
    secrets = [value for name, value in store.environment.items() if "KEY" in name or "SECRET" in name]
    store.place("refused", b"x")
    # Amazon explains a refused signature by all that was signed.
    answer = "".join(("<Error><Code>SignatureDoesNotMatch</Code>", *secrets, "</Error>")).encode()
    refusal = Fault("status", path="refused", status=403, body=answer)
    store.proxy.inject(Fault("status", path="/a", status=503), refusal)
    done = run(store, tmp_path, "-c", SECRETS, store.root)
    assert [fault.fired for fault in store.proxy.faults] == [1, 1], done.stderr
    assert "the service refuses access (403" in done.stderr
    assert not any(secret in done.stdout + done.stderr for secret in secrets)
    assert list(tmp_path.rglob("*")) == []


def test_a_google_account_is_used_and_not_shown(tmp_path: Path) -> None:
    private = RSA.generate(1024).export_key().decode()
    (tmp_path / "account.json").write_text(json.dumps({"client_email": "a@example.org", "private_key": private}))
    with FakeGoogle({BUCKET}, PAGE, anonymous=False).running() as url, Proxy(url).running() as proxy:
        account = {"GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "account.json"), "NO_PROXY": "127.0.0.1"}
        variables = {**account, environment.ENDPOINTS: f"gs={proxy.url}", **LIMITS}
        proxy.inject(Fault("status", path="refused", status=403))
        (tmp_path / "home").mkdir()
        done = run(Service("gs", "", variables, proxy), tmp_path / "home", "-c", SECRETS, f"gs://{BUCKET}/work")
    assert "the service refuses access (403" in done.stderr
    assert not any(secret in done.stderr for secret in (TOKEN, private.splitlines()[1]))
    assert list((tmp_path / "home").iterdir()) == []


FORKED = """
import multiprocessing, sys
from dist_diffusion.errors import StorageError
from dist_diffusion.storage import files

def read(path):
    try:
        print(files.read_bytes(path), flush=True)
    except StorageError as err:
        print(err, flush=True)

if __name__ == "__main__":
    read(sys.argv[1])
    for method in ("fork", "spawn"):
        process = multiprocessing.get_context(method).Process(target=read, args=(sys.argv[1],))
        process.start()
        process.join(20)
        assert process.exitcode == 0, (method, process.exitcode)
"""


def test_a_forked_process_says_that_it_cannot_read(service: Service, tmp_path: Path) -> None:
    path = service.place("a", b"read")
    (tmp_path / "forked.py").write_text(FORKED)
    parent, forked, spawned = run(service, tmp_path, str(tmp_path / "forked.py"), path).stdout.splitlines()
    assert parent == spawned == "b'read'"
    if service.scheme in ("s3", "https"):
        assert forked.startswith(f"cannot read {path}: this process was forked from one that")
        assert forked.endswith('start processes with the method "spawn" or "forkserver", or by subprocess')
    else:
        assert forked == "b'read'"
