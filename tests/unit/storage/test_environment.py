import pytest

from dist_diffusion.errors import ConfigError
from dist_diffusion.storage import blobs, environment


def test_nothing_set_is_the_public_services_and_ten_retries(monkeypatch):
    for name in (environment.ENDPOINTS, environment.RETRIES, environment.TIMEOUT):
        monkeypatch.delenv(name, raising=False)
    settings = environment.settings()
    assert (settings.retries, settings.timeout) == (10, 30)
    assert all(settings.endpoint(scheme) is None for scheme in environment.SCHEMES)


def test_endpoints_are_named_by_scheme():
    settings = environment.parse("az=http://127.0.0.1:1/ s3=https://store.lab:9000", "0", "0.5")
    assert settings.endpoint("az") == "http://127.0.0.1:1" and settings.endpoint("s3") == "https://store.lab:9000"
    assert settings.endpoint("gs") is None
    assert (settings.retries, settings.timeout) == (0, 0.5)


@pytest.mark.parametrize(
    "word", ["http://127.0.0.1:1", "ftp=http://host", "az=host:1", "az=", "az=ftp://host", "az=http://"]
)
def test_what_is_no_endpoint_is_named(word):
    with pytest.raises(ConfigError, match=f"{environment.ENDPOINTS}: {word} is not SCHEME=URL"):
        environment.parse(f"gs=http://host {word}", "10", "30")


@pytest.mark.parametrize("retries", ["-1", "x", "1.5", ""])
def test_retries_are_a_number(retries):
    with pytest.raises(ConfigError, match=f"RETRIES={retries} is not a number of tries"):
        environment.parse("", retries, "30")


@pytest.mark.parametrize("timeout", ["0", "-1", "x", "inf", "nan"])
def test_a_timeout_is_a_number_of_seconds(timeout):
    with pytest.raises(ConfigError, match=f"TIMEOUT={timeout} is not a number of seconds"):
        environment.parse("", "10", timeout)


@pytest.mark.parametrize("writing", [False, True])
def test_traps_of_blobfile_are_turned_off(writing):
    conf = blobs.context(writing=writing)._conf
    assert conf.retry_limit == environment.settings().retries and conf.read_timeout == environment.settings().timeout
    assert conf.save_access_token_to_disk is False
    assert conf.use_blind_writes is writing
