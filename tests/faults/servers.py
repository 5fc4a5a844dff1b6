"""Servers that speak the protocols of object stores, on free ports of 127.0.0.1, and the proxy before each.

One that is not installed raises MissingServer, whose text says what is then not tested and how to get it.
"""

import base64
import hashlib
import hmac
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from unittest import mock
from urllib.parse import urlsplit

from faults.fake_google import FakeGoogle
from faults.proxy import Proxy

from dist_diffusion.storage import environment, publish

ROOT = Path(__file__).resolve().parents[2]
AZURITE_MAIN = "node_modules/azurite/dist/src/blob/main.js"
AZURE_ACCOUNT = "devstoreaccount1"
# Azurite's account and key are fixed and public.
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
S3_KEYS = {"AWS_ACCESS_KEY_ID": "a-key", "AWS_SECRET_ACCESS_KEY": "a-secret", "AWS_REGION": "us-east-1"}
BUCKET = "bucket"
PAGE = 4
"""Names in one answer to a listing, where a server can be told."""
LIMITS = {environment.RETRIES: "3", environment.TIMEOUT: "2"}
"""Patience of the tests: four tries, two seconds each."""
_READY_SECONDS = 60
_NGINX = """
daemon off; master_process off; pid {home}/pid; error_log {home}/error.log;
events {{}}
http {{
    access_log off; client_body_temp_path {home}/1; proxy_temp_path {home}/2; fastcgi_temp_path {home}/3;
    uwsgi_temp_path {home}/4; scgi_temp_path {home}/5;
    server {{ listen 127.0.0.1:{port}; root {home}/files; }}
}}
"""


class MissingServer(Exception):
    """What is not installed."""


@dataclass(frozen=True)
class Service:
    """An object store that is running, behind a proxy.

    root: the path that stands for it, as in "s3://bucket/work", empty at first. environment: what a process needs to
    reach it, short limits included. folder: where a web server's files lie.
    """

    scheme: str
    root: str
    environment: dict[str, str]
    proxy: Proxy
    folder: Path | None = None

    @property
    def writable(self) -> bool:
        return self.folder is None

    def place(self, name: str, data: bytes) -> str:
        """Puts a file below the root, past the faults; gives its path."""
        path = f"{self.root}/{name}"
        with self.proxy.bypassed(), mock.patch.dict(os.environ, self.environment):
            publish.write_bytes(str(self.folder) + urlsplit(path).path if self.folder else path, data)
        return path


@contextmanager
def serving(scheme: str, home: Path) -> Iterator[Service]:
    """The service of a scheme, whose files go below `home`."""
    with STARTS[scheme](home) as (url, root, variables), Proxy(url).running() as proxy:
        endpoints = {environment.ENDPOINTS: f"{scheme}={proxy.url}", "NO_PROXY": "127.0.0.1"}
        folder = home / "files" if scheme == "https" else None
        yield Service(scheme, root, {**variables, **endpoints, **LIMITS}, proxy, folder)


@contextmanager
def google(home: Path) -> Iterator[tuple[str, str, dict[str, str]]]:
    with FakeGoogle({BUCKET}, PAGE).running() as url:
        yield url, f"gs://{BUCKET}/work", {"BLOBFILE_FORCE_GOOGLE_ANONYMOUS_AUTH": "1", "NO_GCE_CHECK": "true"}


@contextmanager
def azurite(home: Path) -> Iterator[tuple[str, str, dict[str, str]]]:
    places = [ROOT / ".venv/node", Path(os.environ.get("DIST_DIFFUSION_AZURITE", "/nowhere"))]
    found = [place / AZURITE_MAIN for place in places if (place / AZURITE_MAIN).exists()]
    node = shutil.which("node")
    if not node or not found:
        raise MissingServer("az:// is NOT TESTED: Azurite is not installed; install node and npm, then `make setup`")
    port = free_port()
    command = [node, str(found[0]), "--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", str(home)]
    flags = ["--silent", "--skipApiVersionCheck", "--disableTelemetry"]
    with running([*command, *flags], port, home):
        request = _signed_container(f"http://127.0.0.1:{port}")
        urllib.request.urlopen(request, timeout=30).close()
        yield f"http://127.0.0.1:{port}", f"az://{AZURE_ACCOUNT}/{BUCKET}/work", {"AZURE_STORAGE_KEY": AZURE_KEY}


@contextmanager
def moto(home: Path) -> Iterator[tuple[str, str, dict[str, str]]]:
    if not importlib.util.find_spec("moto") or not importlib.util.find_spec("flask_cors"):
        raise MissingServer("s3:// is NOT TESTED: moto's server is not installed; run `make setup`")
    port = free_port()
    pages = {"MOTO_S3_DEFAULT_MAX_KEYS": str(PAGE)}
    with running([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], port, home, pages):
        url = f"http://127.0.0.1:{port}"
        urllib.request.urlopen(urllib.request.Request(f"{url}/{BUCKET}", method="PUT"), timeout=30).close()
        yield url, f"s3://{BUCKET}/work", S3_KEYS


@contextmanager
def nginx(home: Path) -> Iterator[tuple[str, str, dict[str, str]]]:
    program = shutil.which("nginx", path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin")))
    if not program:
        raise MissingServer("https:// is NOT TESTED: nginx is not installed; as root: apt-get install nginx-light")
    port = free_port()
    (home / "files/work").mkdir(parents=True)
    (home / "nginx.conf").write_text(_NGINX.format(home=home, port=port))
    with running([program, "-p", str(home), "-c", str(home / "nginx.conf")], port, home):
        yield f"http://127.0.0.1:{port}", "https://files.example.org/work", {}


STARTS: dict[str, Callable] = {"gs": google, "az": azurite, "s3": moto, "https": nginx}


@contextmanager
def running(command: list[str], port: int, home: Path, variables: Mapping[str, str] | None = None) -> Iterator[None]:
    """A server that answers on the port, and is gone after the block; also if the tests themselves are killed."""
    with open(home / "server.log", "wb") as log:
        process = subprocess.Popen(
            ["timeout", "-k", "5", "900", *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=home,
            env={**os.environ, **(variables or {})},
        )
    try:
        _wait(process, port, home)
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen, port: int, home: Path) -> None:
    end = time.monotonic() + _READY_SECONDS
    while True:
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"{process.args} is not ready:\n{(home / 'server.log').read_text()}")
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _signed_container(url: str) -> urllib.request.Request:
    """Makes the container, which blobfile cannot."""
    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2019-02-02"}
    listed = "\n".join(f"{name}:{value}" for name, value in sorted(headers.items()))
    signed = f"PUT{12 * chr(10)}{listed}\n/{AZURE_ACCOUNT}/{BUCKET}\nrestype:container"
    digest = hmac.digest(base64.b64decode(AZURE_KEY), signed.encode(), hashlib.sha256)
    host = {"Host": f"{AZURE_ACCOUNT}.blob.core.windows.net", "Content-Length": "0"}
    headers["Authorization"] = f"SharedKey {AZURE_ACCOUNT}:{base64.b64encode(digest).decode()}"
    return urllib.request.Request(f"{url}/{BUCKET}?restype=container", method="PUT", headers={**headers, **host})
