"""State dicts from anywhere, of torch.save or safetensors: tensors come out of them, and no code of theirs is run."""

import pickle
import re
import shlex
import warnings
import zipfile
from typing import Any, BinaryIO

import safetensors.torch
import torch

from dist_diffusion.errors import CheckpointError, DistDiffusionError
from dist_diffusion.storage import files
from dist_diffusion.weights.shapes import printable

ZIP = b"PK\x03\x04"
"""torch.save's files begin with it since 1.6."""
PICKLE = b"\x80"
"""And with it before."""
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def read_state_dict(path: str) -> dict[str, torch.Tensor]:
    """The tensors by name, as they were saved; CheckpointError says why a file is refused."""
    content = _content(path)
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, not a state_dict (a dictionary from names to tensors)"
        )
    parts = {name: len(value) for name, value in content.items() if isinstance(name, str) and _is_state_dict(value)}
    if parts:
        raise CheckpointError(_which_part(path, parts))
    for name, value in content.items():
        wrong = _wrong(name, value)
        if wrong:
            raise CheckpointError(f"{path}: its entry {printable(str(name))} {wrong}")
    return {name: value.detach() for name, value in content.items()}


def _content(path: str) -> Any:
    """What torch's unpickler for weights makes of the file (it refuses all but tensors and plain containers)."""
    with files.open_read(path) as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about old forms of pickled tensors
        head = stream.read(9)
        stream.seek(0)
        zipped = head.startswith(ZIP)
        try:
            if head[8:] == b"{":  # behind the length of the header
                return safetensors.torch.load(stream.read())
            if zipped:
                _check_zip(path, stream)
            mapped = zipped and not files.is_remote(path)
            return torch.load(path if mapped else stream, map_location="cpu", weights_only=True, mmap=mapped)
        except DistDiffusionError:
            raise
        except Exception as error:  # whatever a damaged file makes of the readers
            raise CheckpointError(f"{path} {_refusal(error, zipped or head.startswith(PICKLE))}") from error


def _check_zip(path: str, stream: BinaryIO) -> None:
    """CheckpointError where it is not torch.save's, or a byte has changed: torch does not look at the checksums."""
    with zipfile.ZipFile(stream) as archive:
        names = archive.namelist()
        damaged = archive.testzip()
    stream.seek(0)
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged (the checksum of {printable(damaged)} is wrong): download it again")
    if any(name.endswith("/constants.pkl") for name in names):
        raise CheckpointError(
            f"{path} is a TorchScript archive, which has code beside its tensors, and nothing of it was run: have "
            "whoever you trust with it save its state_dict"
        )
    if not any(name.endswith("/data.pkl") for name in names):
        raise CheckpointError(
            f"{path} is no file of torch.save: it is a zip of {', '.join(map(printable, names[:3]))}"
            f"{', ...' if len(names) > 3 else ''}"
        )


def _refusal(error: Exception, may_be_pickle: bool) -> str:
    """Why a file was not read; `may_be_pickle`: by its first bytes."""
    unpickling = isinstance(error, pickle.UnpicklingError)
    named = re.search(r"GLOBAL ([\w.]+)", str(error)) if unpickling else None
    if named:
        return (
            f"is refused: to read it would run code of its own ({named[1]}), and nothing of it was run. A state_dict "
            "needs none: have whoever you trust with it save its tensors alone"
        )
    if unpickling and may_be_pickle:
        return (
            "is refused: it is no pickle of tensors alone, so it is damaged or would run code of its own. "
            "Nothing of it was run"
        )
    return "is damaged, or no file of torch.save or safetensors: download it again, or save its state_dict"


def _is_state_dict(value: object) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(entry, torch.Tensor) for entry in value.values())


def _which_part(path: str, parts: dict[str, int]) -> str:
    """What to do with a training checkpoint, by its state_dicts and their lengths."""
    named = ", ".join(f"{printable(name)} ({count} tensor{'s' if count > 1 else ''})" for name, count in parts.items())
    code = (
        "import sys, torch; source, part, out = sys.argv[1:]; "
        'torch.save(torch.load(source, map_location="cpu", weights_only=True)[part], out)'
    )
    arguments = (code, path, printable(next(iter(parts))), "state_dict.pt")
    return (
        f"{path} is a checkpoint of several parts, not a state_dict. Its state_dicts: {named}. Save the one you mean "
        f"alone, then import that file:\n  python -c {' '.join(map(shlex.quote, arguments))}"
    )


def _wrong(name: object, value: object) -> str:
    """Why an entry is none of a state_dict; "" where it is one."""
    if not isinstance(name, str):
        return f"has a {type(name).__name__} for a name: save a state_dict"
    if not isinstance(value, torch.Tensor):
        return f"is a {type(value).__name__}, not a tensor: save the state_dict alone"
    if value.is_meta:
        return "has no values (it is on torch's meta device): save the state_dict of a network that holds its weights"
    if value.dtype not in DTYPES or value.layout != torch.strided:
        return f"is {value.dtype}, {value.layout}: expected dense floats of 16, 32 or 64 bits"
    return ""
