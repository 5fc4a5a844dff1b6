import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import webdataset

from dist_diffusion.data import tars
from dist_diffusion.data.tars import DamagedTarError, Member

FILES = {"00.cls": b"3", "00.jpg": b"x" * 700, "01.cls": b"12", "01.png": b"y" * 512, "02.cls": b"0", "02.gif": b""}


def _written(content: dict[str, bytes]) -> bytes:
    body = b"".join(tars.member(name, data) for name, data in content.items())
    return body + tars.end(len(body))


def _walk(data: bytes, begin: int = 0, stop: int | None = None) -> list[Member]:
    end = len(data) if stop is None else stop
    return list(tars.walk("tar T", lambda offset, length: data[offset : offset + length], begin, end))


def _by_tarfile(**options: int) -> bytes:
    """An archive with all that other programs put into theirs."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", **options) as tar:  # type: ignore[call-overload]
        folder = tarfile.TarInfo("./some")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name in ("./some/a.jpg", f"{'long/' * 40}b.jpg", "ünïcode.jpg", f"{'f' * 99}/{'g' * 60}.jpg"):
            info = tarfile.TarInfo(name)
            info.size = 5
            tar.addfile(info, io.BytesIO(b"12345"))
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "a.jpg"
        tar.addfile(link)
    return stream.getvalue()


def test_the_bytes_are_those_of_webdatasets_writer() -> None:
    """But for the device fields, which depend on Python's version: zeros here."""
    stream = io.BytesIO()
    with webdataset.TarWriter(stream, user="", group="", mtime=0, encoder=False, compress=False) as tar:
        for key in ("00", "01", "02"):
            parts = {name[3:]: data for name, data in FILES.items() if name.startswith(key)}
            tar.write({"__key__": key, **parts})
    theirs = bytearray(stream.getvalue())
    for found in _walk(bytes(theirs)):
        header = theirs[found.offset - tars.BLOCK : found.offset]
        header[329:345] = bytes(16)
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        theirs[found.offset - tars.BLOCK : found.offset] = header
    assert _written(FILES) == theirs


@pytest.mark.parametrize("count", [0, 1, 9, 18, 19, 20, 38, 40])
def test_an_archive_is_whole_records_whatever_it_holds(count: int) -> None:
    data = _written({f"{i}.cls": b"" for i in range(count)})
    assert len(data) % tars.RECORD == 0
    assert [member.name for member in _walk(data)] == [f"{i}.cls" for i in range(count)]
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert tar.getnames() == [f"{i}.cls" for i in range(count)]


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_it_finds_what_tarfile_finds(format_: int) -> None:
    data = _by_tarfile(format=format_)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        theirs = [(m.name.removeprefix("./"), m.offset_data, m.size, m.isfile(), m.isdir()) for m in tar]
    assert [(m.name.rstrip("/"), m.offset, m.size, m.is_file, m.is_folder) for m in _walk(data)] == theirs


def test_a_size_beyond_octal_digits() -> None:
    info = tarfile.TarInfo("huge.jpg")
    info.size = 9 << 30
    header = info.tobuf(tarfile.GNU_FORMAT)
    with pytest.raises(DamagedTarError, match=rf"inside huge\.jpg: 0 of its {9 << 30} bytes are there"):
        _walk(header)


def test_no_cut_goes_unnoticed() -> None:
    """But in the zeros after the end-of-archive marker, which nothing needs."""
    data = _written(FILES)
    needed = max(member.end for member in _walk(data)) + 2 * tars.BLOCK
    for length in range(needed):
        with pytest.raises(DamagedTarError, match=rf"^tar T is (empty \(0 bytes\)|cut short at byte {length}, .*);"):
            _walk(data[:length])
    assert _walk(data[:needed]) == _walk(data)


@pytest.mark.parametrize(
    ("length", "message"),
    [
        (0, "tar T is empty (0 bytes); restore it or fetch it again"),
        (100, "cut short at byte 100, inside the header of its first member;"),
        (512 + 512 + 3, "cut short at byte 1027, inside the header after 00.cls;"),
        (512 + 512 + 512 + 99, "cut short at byte 1635, inside 00.jpg: 99 of its 700 bytes are there;"),
        (512 + 512 + 512 + 700, "cut short at byte 2236, in the padding after 00.jpg;"),
        (512 + 512, "between two members (after 00.cls): its end-of-archive marker is missing;"),
        (6 * 512 + 6 * 512 + 512 + 100, "inside its end-of-archive marker;"),
    ],
)
def test_where_it_was_cut(length: int, message: str) -> None:
    with pytest.raises(DamagedTarError) as caught:
        _walk(_written(FILES)[:length])
    assert message in str(caught.value)


def test_a_changed_header_is_told_from_a_cut() -> None:
    data = bytearray(_written(FILES))
    data[1024 + 5] ^= 1
    with pytest.raises(DamagedTarError, match="damaged at byte 1024: what should be the header of a member"):
        _walk(bytes(data))
    data = bytearray(_written(FILES))
    data[1024:1536] = bytes(512)
    with pytest.raises(DamagedTarError, match="damaged at byte 1024: zeros between two members"):
        _walk(bytes(data))


@pytest.mark.parametrize("record", [b"0 path=a\n", b"-9 path=a\n", b"1 path=a\n", b"x path=a\n"])
def test_a_pax_record_of_no_length_ends_in_an_error(record: bytes) -> None:
    info = tarfile.TarInfo("about")
    info.type, info.size = tarfile.XHDTYPE, len(record)
    data = info.tobuf(tarfile.USTAR_FORMAT) + record.ljust(tars.BLOCK, b"\0") + _written(FILES)
    with pytest.raises(DamagedTarError, match="damaged at byte 512: "):
        _walk(data)


@pytest.mark.parametrize(("mode", "name"), [("w:gz", "gzip"), ("w:bz2", "bzip2"), ("w:xz", "xz")])
def test_a_compressed_tar_is_named_so(mode: str, name: str) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as tar:  # type: ignore[call-overload]
        tar.addfile(tarfile.TarInfo("a"))
    with pytest.raises(DamagedTarError, match=rf"is compressed \({name}\): decompress it"):
        _walk(stream.getvalue() + bytes(512))


def test_a_tar_inside_a_tar_is_walked_by_offset() -> None:
    inner = _written(FILES)
    data = _written({"a.txt": b"hello", "inner.tar": inner, "z.txt": b"bye"})
    outer = _walk(data)[1]
    found = _walk(data, outer.offset, outer.offset + outer.size)
    assert [data[m.offset : m.offset + m.size] for m in found] == list(FILES.values())
    with pytest.raises(DamagedTarError, match="cut short"):
        _walk(data, outer.offset, outer.offset + outer.size - len(inner) + 600)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("/etc/passwd", "its name is absolute"),
        ("../a.jpg", "its name leads out of the archive's folder"),
        ("a/../../b.jpg", "its name leads out of the archive's folder"),
        ("a/..b.jpg", None),
        ("a.jpg", None),
    ],
)
def test_names_that_lead_elsewhere(name: str, reason: str | None) -> None:
    assert tars.reason_against(name) == reason


def test_reading_is_asked_for_headers_only(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(_written({f"{i}.jpg": os.urandom(100_000) for i in range(5)}))
    asked: list[int] = []

    def read(offset: int, length: int) -> bytes:
        asked.append(length)
        with path.open("rb") as stream:
            stream.seek(offset)
            return stream.read(length)

    reader: Callable[[int, int], bytes] = read
    assert len(list(tars.walk("tar", reader, 0, path.stat().st_size))) == 5
    assert sum(asked) == 7 * tars.BLOCK
