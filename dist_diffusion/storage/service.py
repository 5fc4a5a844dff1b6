"""What an object store's refusals and failures mean, in words for users; the clients' own errors end here."""

import errno

NO_ANSWER = "no answer in time"
NO_CONNECTION = "no connection"
BROKEN = "the connection broke"
CREDENTIALS = "check the credentials and what they may do there (docs/storage.md)"


class ServiceError(Exception):
    """Why a service did not do it (`str`), and what to do."""

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(reason)
        self.advice = advice


class UnansweredError(ServiceError):
    """No connection, or one that broke or stood still, however often it was tried."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, "check the network and the service")


def absent() -> FileNotFoundError:
    """Nothing has that name, or the bucket that should hold it does not exist: services answer both alike."""
    return FileNotFoundError(errno.ENOENT, "No such object or bucket")


def no_bucket(bucket: str) -> ServiceError:
    """A bucket, or a container of Azure, is not there."""
    return ServiceError(f"there is no bucket {bucket}", "check the path")


def replaced() -> ServiceError:
    """Two versions of an object would have been mixed."""
    return ServiceError("it was replaced while it was read", "start again, and write new data under new names")


def untrusted() -> ServiceError:
    """Somebody else may be listening."""
    return ServiceError("the server's certificate is not trusted", "name your authority's file in SSL_CERT_FILE")


def answered(status: int, code: str = "") -> Exception:
    """An answer other than success, at the last try; `code` is the service's own word for it."""
    said = f"{status} {code}".strip()
    if status == 404:
        return absent()
    if status in (401, 403):
        return ServiceError(f"the service refuses access ({said})", CREDENTIALS)
    if status in (412, 416):
        return replaced()
    if status in (408, 429) or status >= 500:
        return ServiceError(f"the service keeps answering {said}", "try again later")
    return ServiceError(f"the service answered {said}", "check the path, the region and the service's address")
