"""State dicts of torch.save from anywhere: tensors come out of them, and no code of theirs is run."""

import pickle
import re
import warnings
import zipfile
from typing import Any, BinaryIO

import torch

from dist_diffusion.errors import CheckpointError, StorageError
from dist_diffusion.storage import files

ZIP = b"PK\x03\x04"


def read_state_dict(path: str) -> dict[str, torch.Tensor]:
    """The tensors by name, as they were saved; CheckpointError says why a file is refused."""
    content = _unpickled(path)
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, not a state_dict (a dictionary from names to tensors)"
        )
    for name, value in content.items():
        if not isinstance(value, torch.Tensor):
            raise CheckpointError(
                f"{path}: its entry {name} is a {type(value).__name__}, not a tensor: save the state_dict alone"
            )
        if not value.is_floating_point() or value.layout != torch.strided:
            raise CheckpointError(f"{path}: its entry {name} is {value.dtype}, {value.layout}: expected dense floats")
    return {str(name): value.detach() for name, value in content.items()}


def _unpickled(path: str) -> Any:
    """What torch's unpickler for weights makes of the file; it refuses all but tensors and plain containers."""
    with files.open_read(path) as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about TorchScript, which is then refused
        try:
            zipped = _is_sound_zip(stream)
            mapped = zipped and not files.is_remote(path)
            return torch.load(path if mapped else stream, map_location="cpu", weights_only=True, mmap=mapped)
        except StorageError:
            raise
        except pickle.UnpicklingError as error:
            raise CheckpointError(_refusal(path, str(error))) from error
        except Exception as error:  # whatever a damaged file makes of the readers
            reason = str(error).partition(". ")[0] or "it ends early"
            raise CheckpointError(
                f"{path} is damaged, or no file of torch.save ({type(error).__name__}: {reason})"
            ) from error


def _is_sound_zip(stream: BinaryIO) -> bool:
    """Whether it is a zip, as torch.save writes since 1.6; BadZipFile where a byte of one has changed."""
    zipped = stream.read(len(ZIP)) == ZIP
    stream.seek(0)
    if zipped:
        # torch itself does not look at the checksums of what it maps into memory.
        with zipfile.ZipFile(stream) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")
        stream.seek(0)
    return zipped


def _refusal(path: str, message: str) -> str:
    named = re.search(r"GLOBAL ([\w.]+)", message)
    if named:
        return (
            f"{path} is refused: to read it would run code of its own ({named[1]}), and nothing of it was run. A "
            "state_dict needs none: have whoever you trust with it save its tensors alone"
        )
    reason = re.search(r"Unsupported[^\n.]*", message)
    return (
        f"{path} is refused: it is no pickle of tensors alone ({reason[0] if reason else 'unreadable'}), so it is "
        "damaged or would run code of its own. Nothing of it was run"
    )
