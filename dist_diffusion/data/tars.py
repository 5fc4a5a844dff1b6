"""Tar files block by block: members written without a trace of this machine, and found without trust.

webdataset's TarWriter takes longer over a small image than reading and checking it does, imports torch, and its bytes
differ between versions of Python. Python's own tarfile ends silently at a header that is cut short.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dist_diffusion.errors import DataError

BLOCK = 512
RECORD = 20 * BLOCK
"""An archive's length is a multiple of this many bytes."""

_NAME, _PREFIX, _MAGIC = slice(0, 100), slice(345, 500), slice(257, 263)
_SIZE, _CHECKSUM, _KIND = slice(124, 136), slice(148, 156), slice(156, 157)
_POSIX = b"ustar\0"
_FILES, _CONTENTLESS = (b"0", b"\0", b"7"), (b"1", b"2", b"3", b"4", b"5", b"6")
_FOLDER, _GNU_NAME, _PAX = b"5", b"L", b"x"
_ABOUT_OTHERS = (_GNU_NAME, _PAX, b"K", b"g")
_MAX_ABOUT = 1 << 20
_ZEROS = bytes(BLOCK)
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}

# Mode 0444, owner and time 0; the checksum counts its own field as spaces.
_TEMPLATE = bytearray(BLOCK)
_TEMPLATE[100:148] = b"0000444\0" + 2 * b"0000000\0" + 2 * b"00000000000\0"
_TEMPLATE[148:157] = b"        0"
_TEMPLATE[257:265] = b"ustar\x0000"

Read = Callable[[int, int], bytes]
"""(offset, length) to the bytes there; fewer at the file's end only."""


class DamagedTarError(DataError):
    """The archive is cut short or overwritten; the message names it, the byte, and what to do."""


class CutBetweenMembersError(DamagedTarError):
    """It ends where a member could begin. `byte` is where."""

    def __init__(self, message: str, byte: int) -> None:
        super().__init__(message)
        self.byte = byte


@dataclass(frozen=True)
class Member:
    """A file in an archive: its content is `size` bytes from `offset` on."""

    name: str
    offset: int
    size: int
    is_file: bool
    is_folder: bool

    @property
    def end(self) -> int:
        """Where the next header begins."""
        return self.offset + _padded(self.size)


def member(name: str, data: bytes) -> bytes:
    """Header, content and padding of a file of at most 8 GiB with a name of at most 100 ASCII characters."""
    header = bytearray(_TEMPLATE)
    header[: len(name)] = name.encode("ascii")
    header[_SIZE] = b"%011o\0" % len(data)
    header[_CHECKSUM] = b"%06o\0 " % sum(header)
    return b"".join((header, data, _ZEROS[: -len(data) % BLOCK]))


def end(written: int) -> bytes:
    """What ends an archive after so many bytes: two blocks of zeros, and more up to a whole record."""
    return bytes(-(written + 2 * BLOCK) % RECORD + 2 * BLOCK)


def walk(what: str, read: Read, begin: int, stop: int) -> Iterator[Member]:
    """The members of the archive at bytes `begin` ... `stop` - 1 of a file, which messages call `what`.

    DamagedTarError once the walk comes to damage, and where the archive's end is missing.
    """
    position, last = begin, ""
    about: dict[str, str] = {}
    while True:
        block = read(position, min(BLOCK, max(stop - position, 0)))
        if len(block) < BLOCK:
            raise _cut(what, begin, position, stop, len(block), last)
        if block == _ZEROS:
            return _check_end(what, read, position, stop)
        name, kind, size = _parse(what, block, position, first=position == begin)
        size = int(about.get("size", size))
        content = position + BLOCK
        held = 0 if kind in _CONTENTLESS else size
        name = about.get("path", name) if kind not in _ABOUT_OTHERS else name
        if content + held > stop:
            raise DamagedTarError(
                f"{what} is cut short at byte {stop}, inside {name}: {stop - content} of its {size} bytes are there; "
                f"{_ADVICE}"
            )
        position = content + _padded(held)
        if kind in _ABOUT_OTHERS:
            about |= _about(what, kind, read(content, size) if size <= _MAX_ABOUT else b"", content)
            continue
        yield Member(name.removeprefix("./"), content, held, kind in _FILES, kind == _FOLDER)
        last, about = name, {}


def reason_against(name: str) -> str | None:
    """Why a member of this name must not be used; None where it may."""
    if name.startswith("/"):
        return "its name is absolute"
    return "its name leads out of the archive's folder" if ".." in name.split("/") else None


_ADVICE = "restore it or fetch it again"


def _padded(size: int) -> int:
    return size + -size % BLOCK


def _parse(what: str, block: bytes, position: int, first: bool) -> tuple[str, bytes, int]:
    """Name, kind and size of a header."""
    try:
        checksum, size = _number(block[_CHECKSUM]), _number(block[_SIZE])
    except ValueError:
        checksum, size = -1, 0
    if sum(block) - sum(block[_CHECKSUM]) + 8 * ord(" ") != checksum:
        compressed = _COMPRESSED.get(block[:2]) if first else None
        if compressed:
            raise DamagedTarError(f"{what} is compressed ({compressed}): decompress it, then name the plain tar file")
        raise DamagedTarError(
            f"{what} is damaged at byte {position}: what should be the header of a member has a wrong checksum; "
            f"{_ADVICE}"
        )
    name, prefix = _text(block[_NAME]), _text(block[_PREFIX])
    return f"{prefix}/{name}" if prefix and block[_MAGIC] == _POSIX else name, block[_KIND], size


def _number(field: bytes) -> int:
    """Octal digits, or where they do not suffice a number of base 256 with its highest bit set."""
    if field[0] & 0x80:
        return int.from_bytes(field, "big") & ~(0x80 << 8 * (len(field) - 1))
    return int(field.partition(b"\0")[0].strip() or b"0", 8)


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _about(what: str, kind: bytes, content: bytes, position: int) -> dict[str, str]:
    """What a header that describes the next member says of it: its "path", its "size"."""
    if kind == _GNU_NAME:
        return {"path": _text(content)}
    found = {}
    try:
        while kind == _PAX and content:
            digits, _, rest = content.partition(b" ")
            length = int(digits)
            if length <= len(digits):
                raise ValueError(f"a record of {length} bytes")
            key, _, value = rest[: length - len(digits) - 2].partition(b"=")
            found[key.decode()] = value.decode("utf-8", "surrogateescape")
            content = content[length:]
        return {key: found[key] for key in ("path", "size") if key in found and (key == "path" or int(found[key]) >= 0)}
    except ValueError as error:
        raise DamagedTarError(f"{what} is damaged at byte {position}: {error}; {_ADVICE}") from error


def _check_end(what: str, read: Read, position: int, stop: int) -> None:
    """After one block of zeros there must be a second."""
    second = read(position + BLOCK, min(BLOCK, max(stop - position - BLOCK, 0)))
    if len(second) < BLOCK:
        raise DamagedTarError(f"{what} is cut short at byte {stop}, inside its end-of-archive marker; {_ADVICE}")
    if second != _ZEROS:
        raise DamagedTarError(f"{what} is damaged at byte {position}: zeros between two members; {_ADVICE}")


def _cut(what: str, begin: int, position: int, stop: int, found: int, last: str) -> DamagedTarError:
    """The error for an archive that ends where a header should be, or in it."""
    if stop == begin:
        return DamagedTarError(f"{what} is empty (0 bytes); {_ADVICE}")
    after = f"after {last}" if last else "of its first member"
    if found or position > stop:
        where = f"inside the header {after}" if found else f"in the padding {after}"
        return DamagedTarError(f"{what} is cut short at byte {stop}, {where}; {_ADVICE}")
    return CutBetweenMembersError(
        f"{what} is cut short at byte {stop}, between two members ({after}): its end-of-archive marker is missing; "
        f"{_ADVICE}",
        stop,
    )
