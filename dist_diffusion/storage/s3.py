"""s3:// paths: Amazon's service and those that speak its protocol."""

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dist_diffusion.storage import service
from dist_diffusion.storage.objects import explained, obstore, open_stream, s3_store

# At most four of them are under way at once: all have to arrive within the timeout of one. A file has 10,000 at most.
_PART = 8 << 20


def exists(path: str) -> bool:
    """Whether there is an object, or a folder."""
    with suppress(FileNotFoundError):
        size(path)
        return True
    return is_dir(path)


def is_dir(path: str) -> bool:
    """Whether objects lie below; ServiceError where the bucket is missing."""
    bucket, key = _split(path)
    with _listing(bucket):
        return any(obstore().list(s3_store(bucket), prefix=key, chunk_size=1))


def list_names(folder: str) -> list[str]:
    """Names directly below; none where there is no such folder."""
    objects, folders = _entries(folder)
    return [*objects, *folders]


def size(path: str) -> int:
    """Bytes of an object."""
    bucket, key = _split(path)
    with explained():
        return obstore().head(s3_store(bucket), key)["size"]


def sizes(folder: str, names: Iterable[str]) -> dict[str, int]:
    """Bytes of the named objects that are there, from one listing."""
    objects, _ = _entries(folder)
    return {name: objects[name] for name in names if name in objects}


def tree(folder: str) -> dict[str, int]:
    """Bytes of all objects below, by their path from there."""
    bucket, key = _split(folder)
    skipped = len(key) + 1 if key else 0
    with _listing(bucket):
        pages = obstore().list(s3_store(bucket), prefix=key, chunk_size=1000)
        return {entry["path"][skipped:]: entry["size"] for page in pages for entry in page if entry["path"] != key}


def open_raw(path: str) -> io.RawIOBase:
    """An unbuffered, seekable stream."""
    bucket, key = _split(path)
    return open_stream(path, s3_store(bucket), key)


def upload(local: str, path: str) -> None:
    """Makes an object of a local file; it is not seen before it is whole."""
    bucket, key = _split(path)
    with explained():
        obstore().put(s3_store(bucket), key, Path(local), chunk_size=_PART, max_concurrency=4)


def remove(path: str) -> None:
    """Removes an object, if it is there: the protocol does not tell."""
    try:
        _delete(*_split(path))
    except service.UnansweredError:
        # obstore does not repeat a deletion whose answer was lost.
        _delete(*_split(path))


def _split(path: str) -> tuple[str, str]:
    bucket, _, key = path.removeprefix("s3://").partition("/")
    if not bucket:
        raise service.ServiceError("it names no bucket", "write s3://BUCKET/KEY")
    return bucket, key.rstrip("/")


def _delete(bucket: str, key: str) -> None:
    with explained():
        obstore().delete(s3_store(bucket), key)


def _entries(folder: str) -> tuple[dict[str, int], list[str]]:
    """Bytes of the objects directly below a folder, by name; and the names of its folders."""
    bucket, key = _split(folder)
    with _listing(bucket):
        found = obstore().list_with_delimiter(s3_store(bucket), key)
    # Some programs mark a folder by an empty object of its own name.
    objects = {entry["path"].rpartition("/")[2]: entry["size"] for entry in found["objects"] if entry["path"] != key}
    return objects, [prefix.rpartition("/")[2] for prefix in found["common_prefixes"]]


@contextmanager
def _listing(bucket: str) -> Iterator[None]:
    """Nothing but the bucket can be missing where keys are listed."""
    try:
        with explained():
            yield
    except FileNotFoundError:
        raise service.no_bucket(bucket) from None
