"""The connections that blobfile uses: to the public services, or to the endpoints that the environment names."""

import functools
import os
from typing import Any
from urllib.parse import urlsplit

import urllib3

from dist_diffusion.storage.environment import Settings, settings

_AZURE_HOST = ".blob.core.windows.net"
_GOOGLE_HOSTS = ("storage.googleapis.com", "www.googleapis.com")


def pool() -> urllib3.PoolManager:
    """This process's connections; those of a parent process are left to it."""
    return _pool(settings(), os.getpid())


@functools.lru_cache(maxsize=4)
def _pool(settings: Settings, pid: int) -> urllib3.PoolManager:
    return _Redirecting(settings)


class _Redirecting(urllib3.PoolManager):
    """Sends requests for a service to its endpoint; the Host header stays, for signatures cover it."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(maxsize=32)
        self._settings = settings

    def urlopen(  # type: ignore[override]
        self, method: str, url: str, redirect: bool = True, **options: Any
    ) -> urllib3.BaseHTTPResponse:
        parts = urlsplit(url)
        endpoint = self._settings.endpoint(_scheme(parts.netloc))
        if endpoint:
            options["headers"] = {**(options.get("headers") or {}), "Host": parts.netloc}
            url = endpoint + url.split(parts.netloc, 1)[1]
        return super().urlopen(method, url, redirect=redirect, **options)


def _scheme(host: str) -> str:
    """Whose host this is: a scheme's, or nobody's."""
    if host.endswith(_AZURE_HOST):
        return "az"
    return "gs" if host in _GOOGLE_HOSTS else ""
