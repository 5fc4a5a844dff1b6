"""Labels of files: from their folders, from the beginning of their names, or from a map."""

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np

from dist_diffusion.errors import ConfigError, DataError, StorageError
from dist_diffusion.storage import files

PREFIX = "prefix"
LARGEST_LABEL = 999_999
NO_LABEL = -1
# Python itself refuses to read numbers of thousands of digits.
_INTEGER = re.compile(r"[+-]?\d{1,1000}")
_HEADINGS = ("label", "class")


@dataclass(frozen=True)
class Labels:
    """Of files: int32 values, NO_LABEL where a file has none, and the classes' names."""

    values: np.ndarray
    classes: tuple[str, ...]

    def spread(self, rows: Sequence[int], length: int) -> "Labels":
        """As labels of a longer list of files, of which these are the `rows`."""
        values = np.full(length, NO_LABEL, dtype=np.int32)
        values[rows] = self.values
        return Labels(values, self.classes)


@dataclass(frozen=True)
class LabelMap:
    """Labels by file names, as a file of the user's gives them."""

    path: str
    labels: Mapping[str, str]

    @property
    def reason(self) -> str:
        """Why a file that it does not name is left out."""
        return f"has no label in {self.path}"

    def unused(self, names: Iterable[str]) -> list[Mapping[str, str]]:
        """Entries for files that there are not: {file, reason}."""
        known = set(names)
        reason = f"has a label in {self.path}, but there is no such image"
        return [{"file": name, "reason": reason} for name in self.labels if name not in known]


Prefix = Literal["prefix"]
Given = LabelMap | Prefix | None
"""What --labels says: a map, "prefix" for the beginnings of the files' names, or nothing."""


def parse(text: str | None) -> Given:
    """Of the command line: None, "prefix", or the path of a map."""
    return cast(Given, text) if text in (None, PREFIX) else read_map(str(text))


def prefix_of(name: str) -> str:
    """What comes before the first underscore of a file's own name, as guided-diffusion reads it."""
    return name.rpartition("/")[2].partition("_")[0]


def of_names(
    keys: Sequence[str], names: Sequence[str], given: LabelMap | Prefix, class_names: Sequence[str] | None, where: str
) -> Labels:
    """What a map says of the keys, NO_LABEL where nothing; or what they begin with. `names` is for errors."""
    if isinstance(given, LabelMap):
        texts = [given.labels.get(key) for key in keys]
        return from_texts(texts, lambda i: f"{given.path}: {names[i]}", class_names)
    prefixes = [prefix_of(key) for key in keys]
    return from_groups(prefixes, set(prefixes), class_names, where)


def from_groups(texts: Sequence[str], groups: Iterable[str], names: Sequence[str] | None, where: str) -> Labels:
    """Labels 0, 1, ... are the sorted groups; `names`, one for each of them, replace theirs."""
    ordered = sorted(groups)
    if names is not None and len(names) != len(ordered):
        raise ConfigError(f"--classes names {len(names)} classes, but {where} has {len(ordered)}")
    numbers = {group: number for number, group in enumerate(ordered)}
    values = np.array([numbers[text] for text in texts], dtype=np.int32)
    return Labels(values, tuple(ordered if names is None else names))


def integer(text: str) -> int | None:
    """The label that a text gives in digits; None where it is the name of a class."""
    return int(text) if _INTEGER.fullmatch(text) else None


def from_texts(texts: Sequence[str | None], file: Callable[[int], str], names: Sequence[str] | None) -> Labels:
    """Labels that are all integers, or all names of classes; `names` gives integers their names, and names an order.

    `file` names the file of a text, for errors.
    """
    given = {text for text in texts if text is not None}
    if all(integer(text) is not None for text in given):
        return _from_integers(texts, given, file, names)
    ordered = sorted(given) if names is None else list(names)
    numbers = {name: number for number, name in enumerate(ordered)}
    if len(numbers) < len(ordered):
        twice = next(name for number, name in enumerate(ordered) if numbers[name] != number)
        raise ConfigError(f"--classes has {twice!r} twice, and the labels are such names: make them two names")
    for position, text in enumerate(texts):
        if text is not None and text not in numbers:
            raise DataError(f"{file(position)} has the label {text!r}, which is none of the {len(ordered)} --classes")
    values = [NO_LABEL if text is None else numbers[text] for text in texts]
    return Labels(np.array(values, dtype=np.int32), tuple(ordered))


def read_class_names(path: str) -> list[str]:
    """The lines of a text file: names of classes in the order of the labels."""
    try:
        return files.read_bytes(path).decode("utf-8-sig").splitlines()
    except (StorageError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read --classes {path}: {error}") from error


def read_map(path: str) -> LabelMap:
    """A JSON file, {name: label} or {"labels": [[name, label], ...]}, or a CSV file of lines name,label."""
    try:
        text = files.read_bytes(path).decode("utf-8-sig")
        pairs = _json_pairs(text) if path.endswith(".json") else _csv_pairs(text)
    except StorageError as error:
        raise ConfigError(f"cannot read --labels {path}: {error}") from error
    except (ValueError, csv.Error) as error:
        raise ConfigError(f"--labels {path} is neither JSON nor CSV as docs/data.md describes them: {error}") from error
    labels: dict[str, str] = {}
    for name, label in pairs:
        if labels.setdefault(name, label) != label:
            raise DataError(f"--labels {path} gives {name} two labels, {labels[name]} and {label}")
    if not labels:
        raise DataError(f"--labels {path} holds no labels")
    return LabelMap(path, labels)


def _from_integers(
    texts: Sequence[str | None], given: set[str], file: Callable[[int], str], names: Sequence[str] | None
) -> Labels:
    largest = LARGEST_LABEL if names is None else len(names) - 1
    wrong = {text for text in given if not 0 <= int(text) <= largest}
    if wrong:
        position = next(i for i, text in enumerate(texts) if text in wrong)
        known = f"0 ... {largest}" + ("" if names is None else ", the lines of --classes")
        raise DataError(f"{file(position)} has the label {texts[position]}, which is out of range: labels are {known}")
    numbers = {text: int(text) for text in given}
    values = [NO_LABEL if text is None else numbers[text] for text in texts]
    classes = names if names is not None else [str(i) for i in range(max(numbers.values(), default=-1) + 1)]
    return Labels(np.array(values, dtype=np.int32), tuple(classes))


def _json_pairs(text: str) -> list[tuple[str, str]]:
    # Pairs, not dictionaries: of a name given twice a dictionary would keep the last in silence.
    top = json.loads(text, object_pairs_hook=tuple)
    if not isinstance(top, tuple):
        raise ValueError("it holds no JSON object")
    listed = [value for name, value in top if name == "labels" and isinstance(value, list)]
    return [_pair(entry) for entry in (listed[0] if listed else top)]


def _pair(entry: Any) -> tuple[str, str]:
    if not (isinstance(entry, list | tuple) and len(entry) == 2 and isinstance(entry[0], str)):
        raise ValueError(f"{entry!r} is not a name and a label")
    if isinstance(entry[1], bool) or not isinstance(entry[1], int | str):
        raise ValueError(f"the label of {entry[0]} is {entry[1]!r}, neither an integer nor a name")
    return entry[0], str(entry[1])


def _csv_pairs(text: str) -> list[tuple[str, str]]:
    rows = [row for row in csv.reader(io.StringIO(text)) if row]
    if rows and len(rows[0]) == 2 and rows[0][1].strip().lower() in _HEADINGS:
        rows = rows[1:]
    for row in rows:
        if len(row) != 2:
            raise ValueError(f"the line {','.join(row)!r} has not two columns, file and label")
    return [(name.strip(), label.strip()) for name, label in rows]
