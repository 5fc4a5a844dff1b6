import hashlib
import os
import subprocess
import sys
import tarfile

import pytest

from dist_diffusion.errors import StorageError
from dist_diffusion.storage import files


@pytest.mark.parametrize("path", ["gs://bucket/a", "az://account/container/a", "s3://bucket/a", "https://host/a"])
def test_known_schemes_are_remote(path):
    assert files.is_remote(path)


@pytest.mark.parametrize("path", ["/data/a", "a/b", "a:b", ""])
def test_paths_without_a_scheme_are_local(path):
    assert not files.is_remote(path)


@pytest.mark.parametrize("path", ["http://host/a", "hdfs://host/a", "file:///a"])
def test_other_schemes_are_refused_with_the_known_ones(path):
    with pytest.raises(StorageError, match=r"not a known scheme.*gs://, az://, s3://, https://") as caught:
        files.read_bytes(path)
    assert path in str(caught.value)


@pytest.mark.parametrize("path", ["https://host/a?signature=secret", "https://user:secret@host/a"])
def test_addresses_that_hold_secrets_are_refused_without_showing_them(path):
    with pytest.raises(StorageError, match=r"^https://host/\.\.\.: an address with a password or a query") as caught:
        files.read_bytes(path)
    assert "secret" not in str(caught.value)


def test_join():
    assert files.join("gs://bucket/run/", "a", "b") == "gs://bucket/run/a/b"
    assert files.join("/run", "a", "b") == os.path.join("/run", "a", "b")


def test_local_files(tmp_path):
    data = os.urandom(3_000_001)
    path = str(tmp_path / "data.bin")
    (tmp_path / "data.bin").write_bytes(data)
    assert files.exists(path) and not files.is_dir(path) and files.is_dir(str(tmp_path))
    assert files.size(path) == len(data)
    assert files.read_bytes(path) == data
    assert files.sizes(str(tmp_path), ["data.bin", "absent"]) == {"data.bin": len(data)}
    assert files.sha256(path) == hashlib.sha256(data).hexdigest()


def test_open_read_streams_and_seeks(tmp_path):
    (tmp_path / "member.txt").write_bytes(b"inside")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "member.txt", "member.txt")
    with files.open_read(str(tmp_path / "a.tar")) as stream, tarfile.open(fileobj=stream) as archive:
        assert archive.extractfile("member.txt").read() == b"inside"
        stream.seek(-10, os.SEEK_END)
        assert stream.read() == bytes(10)


def test_list_names_is_sorted_and_without_unpublished_files(tmp_path):
    for name in ("b", "a", f"{files.TEMPORARY_PREFIX}1-c"):
        (tmp_path / name).touch()
    assert files.list_names(str(tmp_path)) == ["a", "b"]
    assert files.list_names(str(tmp_path / "absent")) == []


def test_failures_name_the_path_and_what_to_do(tmp_path):
    absent = str(tmp_path / "absent")
    for read in (files.size, files.read_bytes, files.sha256, files.read_json):
        with pytest.raises(StorageError, match=f"cannot read {absent}: No such file or directory; check the path"):
            read(absent)
    with pytest.raises(StorageError, match=f"cannot list {tmp_path}/file: Not a directory"):
        (tmp_path / "file").touch()
        files.list_names(str(tmp_path / "file"))
    with pytest.raises(StorageError, match=f"cannot read {tmp_path}: Is a directory"):
        files.read_bytes(str(tmp_path))


def test_a_failure_while_reading_names_the_path(tmp_path):
    with files.open_read("/proc/self/mem") as stream, pytest.raises(StorageError, match="cannot read /proc/self/mem"):
        stream.read(1)


def test_broken_json_is_named(tmp_path):
    (tmp_path / "a.json").write_text('{"a": ')
    with pytest.raises(StorageError, match=r"a\.json is not valid JSON"):
        files.read_json(str(tmp_path / "a.json"))


def test_local_use_imports_no_client_of_a_service(tmp_path):
    script = (
        "import sys; from dist_diffusion.storage import committed, files, publish;"
        f"path = {str(tmp_path / 'a')!r}; publish.write_bytes(path, b'x'); files.read_bytes(path);"
        "assert not {'blobfile', 'obstore', 'urllib3', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
