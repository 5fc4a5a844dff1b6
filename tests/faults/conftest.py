"""Object stores on loopback, each started when a test first wants it."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest
from faults.servers import STARTS, MissingServer, Service, serving


@pytest.fixture(scope="session")
def start_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Service]]:
    """Gives the service of "gs", "az", "s3" or "https", with no faults and an empty root; skips where it cannot.

    For processes that a test starts: they need its `environment`.
    """
    started: dict[str, Service | MissingServer] = {}
    numbers = itertools.count()
    with ExitStack() as stack:

        def start(scheme: str) -> Service:
            if scheme not in started:
                try:
                    started[scheme] = stack.enter_context(serving(scheme, tmp_path_factory.mktemp(scheme)))
                except MissingServer as missing:
                    started[scheme] = missing
            found = started[scheme]
            if isinstance(found, MissingServer):
                pytest.skip(str(found))
            found.proxy.inject()
            return replace(found, root=f"{found.root}/{next(numbers)}")

        yield start


@pytest.fixture
def reach(start_service: Callable[[str], Service], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Service]:
    """The same, and this process has the environment that it needs."""

    def reached(scheme: str) -> Service:
        found = start_service(scheme)
        for name, value in found.environment.items():
            monkeypatch.setenv(name, value)
        return found

    return reached


@pytest.fixture(params=sorted(STARTS))
def service(request: pytest.FixtureRequest, reach: Callable[[str], Service]) -> Service:
    """Each service in turn."""
    return reach(request.param)


@pytest.fixture(params=sorted(set(STARTS) - {"https"}))
def store(request: pytest.FixtureRequest, reach: Callable[[str], Service]) -> Service:
    """Each that can be written."""
    return reach(request.param)
