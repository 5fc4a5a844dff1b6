import json
from pathlib import Path

import pytest

from dist_diffusion.data.making import labels
from dist_diffusion.data.making.labels import NO_LABEL, LabelMap
from dist_diffusion.errors import ConfigError, DataError


def _file(i: int) -> str:
    return f"file {i}"


def _map(tmp_path: Path, name: str, content: str) -> LabelMap:
    path = tmp_path / name
    path.write_text(content)
    return labels.read_map(str(path))


def test_integers() -> None:
    found = labels.from_texts(["2", None, "0"], _file, None)
    assert found.values.tolist() == [2, NO_LABEL, 0]
    assert found.classes == ("0", "1", "2")
    assert labels.from_texts(["1"], _file, ["ant", "bee"]).classes == ("ant", "bee")


def test_names_in_sorted_or_given_order() -> None:
    texts = ["cat", "ant", None, "cat"]
    found = labels.from_texts(texts, _file, None)
    assert (found.values.tolist(), found.classes) == ([1, 0, NO_LABEL, 1], ("ant", "cat"))
    found = labels.from_texts(texts, _file, ["cat", "bee", "ant"])
    assert (found.values.tolist(), found.classes) == ([0, 2, NO_LABEL, 0], ("cat", "bee", "ant"))


@pytest.mark.parametrize(
    ("texts", "names", "message"),
    [
        (["0", "-1"], None, r"file 1 has the label -1, which is out of range: labels are 0 \.\.\. 999999"),
        (["0", "1000000"], None, "file 1 has the label 1000000, which is out of range"),
        (["1", "2"], ["a", "b"], r"file 1 has the label 2, which is out of range: labels are 0 \.\.\. 1, the lines of"),
        (["ant", "bee"], ["ant"], "file 1 has the label 'bee', which is none of the 1 --classes"),
        (["1", "bee"], ["bee"], "file 0 has the label '1', which is none of the 1 --classes"),
    ],
)
def test_labels_that_are_none(texts: list[str], names: list[str] | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        labels.from_texts(texts, _file, names)


def test_names_given_twice_are_for_integers_only() -> None:
    """ImageNet has two classes called crane."""
    assert labels.from_texts(["0", "1"], _file, ["crane", "crane"]).classes == ("crane", "crane")
    with pytest.raises(ConfigError, match="--classes has 'crane' twice, and the labels are such names"):
        labels.from_texts(["crane"], _file, ["crane", "crane"])


def test_prefixes_as_guided_diffusion_reads_them() -> None:
    found = labels.of_names(["a/dog_1_2.png", "cat_3.png", "b_c/dog.png"], [], "prefix", None, "here")
    assert found.classes == ("cat", "dog", "dog.png")
    assert found.values.tolist() == [1, 0, 2]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("m.json", json.dumps({"a/0.png": 3, "b.png": "1"})),
        ("m.json", json.dumps({"labels": [["a/0.png", 3], ["b.png", 1]], "note": "StyleGAN's"})),
        ("m.csv", "a/0.png,3\nb.png,1\n"),
        ("m.csv", "\ufefffile,label\na/0.png, 3\n\nb.png,1"),
    ],
)
def test_kinds_of_maps(tmp_path: Path, name: str, content: str) -> None:
    assert _map(tmp_path, name, content).labels == {"a/0.png": "3", "b.png": "1"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.json", "{", r"--labels .*/m\.json is neither JSON nor CSV"),
        ("m.json", "[1, 2]", "it holds no JSON object"),
        ("m.json", '{"labels": null}', "the label of labels is None, neither an integer nor a name"),
        ("m.json", '{"labels": [["a", 1, 2]]}', r"\['a', 1, 2\] is not a name and a label"),
        ("m.json", '{"a": 1.5}', "the label of a is 1.5, neither"),
        ("m.json", '{"a": true}', "the label of a is True, neither"),
        ("m.csv", "a,1,2\n", "the line 'a,1,2' has not two columns"),
    ],
)
def test_maps_that_are_none(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _map(tmp_path, name, content)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.json", '{"a": 1, "a": 2}', r"--labels .*/m\.json gives a two labels, 1 and 2"),
        ("m.csv", "a,1\nb,1\na,3\n", "gives a two labels, 1 and 3"),
        ("m.csv", "file,label\n", "holds no labels"),
    ],
)
def test_maps_that_contradict_themselves_or_say_nothing(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        _map(tmp_path, name, content)
