"""What networks and services do to requests, and what a user sees of it. Each test sees that its fault happened."""

import gc
import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace

import pytest
from faults.proxy import Fault
from faults.servers import S3_KEYS, Service, free_port

from dist_diffusion.errors import StorageError
from dist_diffusion.storage import environment, files, publish

SIZE = 3_000_000
DATA = bytes(hashlib.shake_256(b"data").digest(SIZE))
OTHER = bytes(hashlib.shake_256(b"other").digest(SIZE))

PASSING = {
    "503 twice": [Fault("status", status=503, times=2)],
    "429 twice": [Fault("status", status=429, times=2)],
    "reset before the answer": [Fault("reset")],
    "reset in the body": [Fault("reset", at=2_000_000)],
    "reset thrice": [Fault("reset", at=700_000, times=3)],
    "cut short": [Fault("truncate", at=2_000_000)],
    "cut short at once": [Fault("truncate", at=0)],
    "a stall before the answer": [Fault("stall", seconds=30)],
    "a stall in the body": [Fault("stall", at=2_000_000, seconds=30)],
    "reset, then 503": [Fault("reset", at=1_000_000), Fault("status", first=1, times=2)],
}


def inject(service: Service, *faults: Fault, of: str = "data") -> list[Fault]:
    """Fresh faults for requests for one object's bytes."""
    # Google's metadata are read by GET too.
    media = "alt=media" if service.scheme == "gs" else ""
    fresh = [replace(fault, path=f"{of}.*{media}" if fault.method == "GET" else fault.path) for fault in faults]
    service.proxy.inject(*fresh)
    return fresh


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tries of 0.4 s."""
    monkeypatch.setenv(environment.RETRIES, "1")
    monkeypatch.setenv(environment.TIMEOUT, "0.4")


@pytest.mark.parametrize("name", PASSING)
def test_faults_that_pass_are_not_noticed(service: Service, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "stall" in name:
        monkeypatch.setenv(environment.TIMEOUT, "0.5")
    path = service.place("data", DATA)
    faults = inject(service, *PASSING[name])
    assert files.sha256(path) == hashlib.sha256(DATA).hexdigest()
    assert all(fault.fired == fault.times for fault in faults)


@pytest.mark.parametrize("name", ["reset in the body", "cut short"])
def test_reading_resumes_where_it_broke_off(service: Service, name: str) -> None:
    path = service.place("data", DATA)
    inject(service, *PASSING[name])
    sent_before = service.proxy.sent
    assert files.read_bytes(path) == DATA
    # The bytes in buffers when the connection broke come twice, those before do not.
    assert service.proxy.sent - sent_before < SIZE + 1_500_000


def test_resuming_goes_on_as_long_as_bytes_come(service: Service, impatient: None) -> None:
    path = service.place("data", DATA)
    faults = inject(service, Fault("truncate", at=1_100_000, times=None))
    assert files.read_bytes(path) == DATA
    assert faults[0].fired >= 2


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault("status", status=503, times=None), r"the service keeps answering 503; try again later"),
        (Fault("status", status=429, times=None), r"the service keeps answering 429; try again later"),
        (Fault("stall", seconds=30, times=None), "no answer in time; check the network and the service"),
        (Fault("stall", at=0, seconds=30, times=None), "no answer in time; check the network and the service"),
        (Fault("reset", times=None), "the connection broke; check the network and the service"),
        (Fault("truncate", at=0, times=None), "the connection broke; check the network and the service"),
    ],
    ids=["503", "429", "stall", "stall in the body", "reset", "cut short"],
)
def test_faults_that_do_not_pass_end_in_an_error(service: Service, fault: Fault, message: str, impatient: None) -> None:
    path = service.place("data", DATA)
    faults = inject(service, fault)
    start = time.monotonic()
    with pytest.raises(StorageError, match=f"^cannot read {path}: {message}"):
        files.read_bytes(path)
    # Two tries of 0.4 s and a pause; once more where a client looks at the object first.
    assert time.monotonic() - start < 4
    assert faults[0].fired >= 2


def test_an_outage_in_the_middle_names_the_path(service: Service, impatient: None) -> None:
    path = service.place("data", DATA)
    inject(service, Fault("truncate", at=2_000_000), Fault("status", times=None))
    with (
        pytest.raises(StorageError, match=f"^cannot read {path}: the service keeps answering 503"),
        files.open_read(path) as stream,
    ):
        assert stream.read(1_000_000) == DATA[:1_000_000]
        stream.read()


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_is_told_at_once(service: Service, status: int) -> None:
    path = service.place("data", DATA)
    methods = ("GET", "HEAD", "PUT", "POST", "DELETE")
    service.proxy.inject(*(Fault("status", method, "data", status, times=None) for method in methods))
    refused = rf"{path}: the service refuses access \({status}.*check the credentials"
    with pytest.raises(StorageError, match=f"cannot read {refused}"):
        files.read_bytes(path)
    with pytest.raises(StorageError, match=f"cannot look up {refused}"):
        files.exists(path)
    if service.writable:
        with pytest.raises(StorageError, match=f"cannot remove {refused}"):
            publish.remove(path)
    assert sum(service.proxy.requests.values()) <= 3 + (service.scheme == "az")


def test_an_object_that_goes_away_is_missing(service: Service) -> None:
    path = service.place("data", DATA)
    inject(service, Fault("reset", at=2_000_000), Fault("status", status=404, times=None))
    with pytest.raises(StorageError, match=f"cannot read {path}: .*(No such object|404)"):
        files.read_bytes(path)


@pytest.mark.parametrize("scheme", ["az", "s3", "https"])
def test_two_versions_are_never_mixed(reach: Callable[[str], Service], scheme: str) -> None:
    service = reach(scheme)
    path = service.place("data", DATA)
    faults = inject(service, Fault("truncate", at=2_000_000))
    with files.open_read(path) as stream:
        assert stream.read(1000) == DATA[:1000]
        service.place("data", OTHER[:-1])
        with pytest.raises(StorageError, match=f"cannot read {path}: it was replaced while it was read; start again"):
            stream.read()
    assert faults[0].fired == 1


def test_an_object_of_google_that_became_shorter_is_no_end(reach: Callable[[str], Service]) -> None:
    service = reach("gs")
    path = service.place("data", DATA)
    inject(service, Fault("truncate", at=2_000_000))
    with files.open_read(path) as stream:
        assert stream.read(1000) == DATA[:1000]
        service.place("data", OTHER[:1_500_000])
        with pytest.raises(StorageError, match=f"cannot read {path}: it was replaced while it was read"):
            stream.read()


def test_a_changed_byte_is_for_checksums_to_find(service: Service) -> None:
    path = service.place("data", DATA)
    faults = inject(service, Fault("corrupt", at=1_234_567))
    found = files.read_bytes(path)
    assert faults[0].fired == 1
    assert [i for i in range(SIZE) if found[i] != DATA[i]] == [1_234_567]


def commits(service: Service, large: bool) -> Fault:
    """The request that makes a written object visible."""
    if service.scheme == "s3" and large:
        return Fault("lose", "POST", "uploadId=")
    return Fault("lose", "PUT", {"az": "comp=blocklist", "gs": "session", "s3": "data"}[service.scheme])


@pytest.mark.parametrize("size", [1000, 9_000_000])
def test_a_lost_answer_to_a_write_is_no_failure(store: Service, size: int) -> None:
    path = store.place("data", b"old")
    store.proxy.inject(fault := commits(store, size > 1000))
    data = (OTHER * 3)[:size]
    publish.write_bytes(path, data)
    assert fault.fired == 1 and files.read_bytes(path) == data


def test_a_lost_answer_to_a_removal_is_no_failure(store: Service) -> None:
    path = store.place("data", b"x")
    store.proxy.inject(fault := Fault("lose", "DELETE"))
    publish.remove(path)
    assert fault.fired == 1 and not files.exists(path)


@pytest.mark.parametrize("action", ["status", "reset", "stall"])
def test_writes_are_tried_again(store: Service, action: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(environment.TIMEOUT, "0.5" if action == "stall" else "2")
    path = f"{store.root}/data"
    faults = [Fault(action, method, "data|session", seconds=30) for method in ("PUT", "POST")]
    store.proxy.inject(*faults)
    publish.write_bytes(path, DATA * 3)
    assert any(fault.fired for fault in faults)
    assert files.sha256(path) == hashlib.sha256(DATA * 3).hexdigest()


def steps_of_a_write(store: Service) -> Iterator[Fault]:
    """Each kind of request that a large write makes, refused for good."""
    steps = {"az": ["comp=block&", "comp=blocklist"], "gs": ["session"], "s3": ["partNumber=2"]}[store.scheme]
    yield from (Fault("status", "PUT", step, times=None) for step in steps)
    if store.scheme != "az":
        yield Fault("status", "POST", "uploads|uploadType", times=None)


def test_writes_that_fail_for_good_leave_the_old_file(store: Service, impatient: None) -> None:
    path = store.place("data", b"old")
    for fault in steps_of_a_write(store):
        store.proxy.inject(fault)
        with pytest.raises(StorageError, match=f"cannot write {path}: the service keeps answering 503"):
            publish.write_bytes(path, DATA * 4)
        assert fault.fired == 2
        store.proxy.inject()
        assert files.read_bytes(path) == b"old" and files.list_names(store.root) == ["data"]


@pytest.mark.parametrize("size", [1000, 9_000_000])
def test_a_write_that_failed_is_not_made_later(store: Service, impatient: None, size: int) -> None:
    for fault in [*steps_of_a_write(store), Fault("status", "PUT", "data", times=None)]:
        path = store.place("data", b"old")
        store.proxy.inject(fault)
        with suppress(StorageError):
            publish.write_bytes(path, OTHER[:1] * size)
            continue
        store.proxy.inject()
        # A failed writer that is collected as garbage must not try once more.
        gc.collect()
        assert files.read_bytes(path) == b"old"


def test_an_upload_that_google_forgot_is_begun_anew(reach: Callable[[str], Service]) -> None:
    service = reach("gs")
    path = f"{service.root}/data"
    service.proxy.inject(fault := Fault("status", "PUT", "session", status=410, first=2))
    publish.write_bytes(path, DATA * 4)
    assert fault.fired == 1 and files.read_bytes(path) == DATA * 4


@pytest.mark.parametrize("scheme", ["az", "gs", "https", "s3"])
def test_no_server_at_all_is_told(
    reach: Callable[[str], Service], scheme: str, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = reach(scheme)
    monkeypatch.setenv(environment.ENDPOINTS, f"{scheme}=http://127.0.0.1:{free_port()}")
    with pytest.raises(StorageError, match=f"cannot read {service.root}/a: no connection; check the network"):
        files.read_bytes(f"{service.root}/a")


def test_missing_credentials_are_told(reach: Callable[[str], Service], monkeypatch: pytest.MonkeyPatch) -> None:
    service = reach("s3")
    path = service.place("data", b"x")
    for name in S3_KEYS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    # The store of the other tests knows its credentials already.
    monkeypatch.setenv(environment.RETRIES, "0")
    with pytest.raises(StorageError, match=f"cannot read {path}: no credentials were found; set AWS_ACCESS_KEY_ID"):
        files.read_bytes(path)


def test_wrong_credentials_are_told(reach: Callable[[str], Service], monkeypatch: pytest.MonkeyPatch) -> None:
    service = reach("az")
    path = service.place("data", b"x")
    # blobfile remembers the key that it has found to work.
    keys = pytest.importorskip("blobfile._azure").access_token_manager
    monkeypatch.setattr(keys, "_tokens", {})
    monkeypatch.setattr(keys, "_expirations", {})
    monkeypatch.setenv("AZURE_STORAGE_KEY", service.environment["AZURE_STORAGE_KEY"][::-1].replace("=", "A"))
    with pytest.raises(StorageError, match=f"cannot read {path}: Could not find any credentials .*; check") as caught:
        files.read_bytes(path)
    assert "\n" not in str(caught.value)


def test_faults_choose_their_requests() -> None:
    fault = Fault("status", path="a/b$", first=2, every=3, times=2)
    taken = [fault.takes("GET", "/x/a%2Fb") for _ in range(10)]
    assert [i for i, was in enumerate(taken) if was] == [1, 4]
    assert not fault.takes("PUT", "/x/a/b") and not fault.takes("GET", "/x/a/bc")
