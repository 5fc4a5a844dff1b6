import pytest

from dist_diffusion.data import tars
from dist_diffusion.data.samples import LeftOut, Sample, samples
from dist_diffusion.data.tars import DamagedTarError, Member


def _group(*names: str) -> list[Sample | LeftOut]:
    return list(samples("shard S", [Member(name, 0, 1, True, False) for name in names]))


def _cut(content: list[str], members: int) -> str:
    """The message for a tar that ends after so many of its members."""
    data = b"".join(tars.member(name, b"1") for name in content[:members])
    with pytest.raises(DamagedTarError) as caught:
        list(samples("shard S", tars.walk("shard S", lambda at, count: data[at : at + count], 0, len(data))))
    return str(caught.value)


def test_a_sample_is_what_shares_the_key() -> None:
    found = _group("a/0.cls", "a/0.jpg", "a/1.JPG", "a/1.json", "b/1.json", "b/1.png")
    assert [(s.key, sorted(s.members)) for s in found if isinstance(s, Sample)] == [
        ("a/0", ["cls", "jpg"]),
        ("a/1", ["jpg", "json"]),
        ("b/1", ["json", "png"]),
    ]


def test_a_key_ends_at_the_first_dot_of_the_name() -> None:
    assert [s.key for s in _group("v1.2/x.y.jpg", "v1.2/x.cls") if isinstance(s, Sample)] == ["v1.2/x"]


def test_what_has_no_key_is_passed_over() -> None:
    found = _group("readme", ".hidden.jpg", "0.cls", "d/", "0.jpg")
    assert [sorted(s.members) for s in found if isinstance(s, Sample)] == [["cls", "jpg"]]


def test_duplicates_and_unsafe_names_are_told() -> None:
    found = _group("0.cls", "0.jpg", "0.jpg", "1.jpg", "0.cls", "0.jpg", "../2.jpg", "/3.jpg")
    assert [s for s in found if isinstance(s, LeftOut)] == [
        LeftOut("0.jpg", "0.jpg occurs twice"),
        LeftOut("0.cls", "the key 0 occurs twice"),
        LeftOut("0.jpg", "the key 0 occurs twice"),
        LeftOut("../2.jpg", "its name leads out of the archive's folder"),
        LeftOut("/3.jpg", "its name is absolute"),
    ]
    assert [s.key for s in found if isinstance(s, Sample)] == ["0", "1"]


def test_links_are_told() -> None:
    (found,) = samples("shard S", [Member("0.jpg", 0, 0, False, False)])
    assert found == LeftOut("0.jpg", "it is a link or a device, not a file")


def test_the_image_of_a_sample() -> None:
    one, two, none, latent, both = (s for s in _group("0.png", "1.jpg", "1.png", "2.txt", "3.npy", "4.npy", "4.jpg"))
    assert isinstance(one, Sample) and one.image is one.members["png"]
    assert isinstance(two, Sample) and (two.image, two.reason) == (None, "more than one image (jpg, png)")
    assert isinstance(none, Sample) and none.image is None and "no image" in none.reason
    assert isinstance(latent, Sample) and latent.image is latent.members["npy"]
    assert isinstance(both, Sample) and both.image is both.members["jpg"]


def test_a_cut_between_samples_and_inside_one() -> None:
    content = ["0.cls", "0.jpg", "1.cls", "1.jpg"]
    assert "between two members (after 0.jpg)" in _cut(content, 2)
    assert "between the files of sample 1: cls is there, image is not" in _cut(content, 3)
    assert "between the files of sample 0: cls is there, image is not" in _cut(content, 1)
    content = ["0.jpg", "0.json", "1.jpg", "1.json"]
    assert "between two members (after 0.json)" in _cut(content, 2)
    assert "between the files of sample 1: image is there, json is not" in _cut(content, 3)
