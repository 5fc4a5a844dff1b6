"""What the environment says about object stores: where they are, and how patient to be with them. Pure parsing.

How long a path that answers nothing can hold its reader, with the defaults: (RETRIES + 1) x TIMEOUT = 330 s, and up to
56 s of pauses between the tries, which grow to 26 s (blobfile) or 15 s (obstore). Under seven minutes; after that the
path is named in an error. Each byte that arrives starts the count anew: a slow object is read to its end. A body that
breaks off after some bytes is asked for once more from there before that count is over, so twice that at most; a
service that first refuses and then stalls, each time just short of the limits, can hold blobfile RETRIES + 1 times as
long.
"""

import functools
import os
from dataclasses import dataclass
from urllib.parse import urlsplit

from dist_diffusion.errors import ConfigError

ENDPOINTS = "DIST_DIFFUSION_STORAGE_ENDPOINTS"
"""Variable: "az=URL gs=URL s3=URL https=URL", the servers to ask instead of the public ones."""
RETRIES = "DIST_DIFFUSION_STORAGE_RETRIES"
"""Variable: how often a request is tried again."""
TIMEOUT = "DIST_DIFFUSION_STORAGE_TIMEOUT"
"""Variable: seconds without a byte after which a request has failed."""

SCHEMES = ("gs", "az", "s3", "https")
CONNECT_TIMEOUT = 10
DEFAULT_RETRIES = "10"
DEFAULT_TIMEOUT = "30"


@dataclass(frozen=True)
class Settings:
    """`endpoints`: pairs of scheme and URL without a slash at its end; `timeout` in seconds."""

    endpoints: tuple[tuple[str, str], ...]
    retries: int
    timeout: float

    def endpoint(self, scheme: str) -> str | None:
        """The URL that takes a scheme's requests; None for the public service."""
        return dict(self.endpoints).get(scheme)


def settings() -> Settings:
    """This process's settings; ConfigError that names the variable."""
    get = os.environ.get
    return parse(get(ENDPOINTS, ""), get(RETRIES, DEFAULT_RETRIES), get(TIMEOUT, DEFAULT_TIMEOUT))


@functools.lru_cache
def parse(endpoints: str, retries: str, timeout: str) -> Settings:
    """The settings that the three variables stand for."""
    pairs = tuple(_endpoint(word) for word in endpoints.split())
    if not retries.isdecimal():
        raise ConfigError(f"{RETRIES}={retries} is not a number of tries: use 0 or more")
    try:
        seconds = float(timeout)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ConfigError(f"{TIMEOUT}={timeout} is not a number of seconds: use more than 0")
    return Settings(pairs, int(retries), seconds)


def _endpoint(word: str) -> tuple[str, str]:
    scheme, _, url = word.partition("=")
    parts = urlsplit(url)
    if scheme not in SCHEMES or parts.scheme not in ("http", "https") or not parts.netloc:
        known = ", ".join(SCHEMES)
        raise ConfigError(f"{ENDPOINTS}: {word} is not SCHEME=URL with one of {known} and an http:// or https:// URL")
    return scheme, url.rstrip("/")
