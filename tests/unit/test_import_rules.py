"""Holds the package to the table of layers in CONTRIBUTING.md."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "dist_diffusion"
ROW = re.compile(r"^\| `(\w+)` \|[^|]*\|(?: (`\w+`(?:, `\w+`)*)(?: in `([\w./]+)`)?)? \|$", re.MULTILINE)
TORCH_FREE = ["data.decode_worker", "data.order", "config.schema", "draws", "errors"]

# Narrower than the table: all that these layers may import from the package.
NEEDS_ONLY = {
    "diffusion": {"errors", "diffusion"},
    "tasks": {"errors", "draws", "diffusion", "models", "config", "tasks"},
}
NEVER = {"engine": {"data"}}


@dataclass(frozen=True)
class Rules:
    """The table: layers from the top, and for each guarded package the path that alone may import it."""

    layers: list[str]
    doors: dict[str, str]


def read_rules(page: str) -> Rules:
    section = page.split("\n## Layers\n")[1].split("\n## ")[0]
    rows = ROW.findall(section)
    assert len(rows) == section.count("\n| `"), "a row of the table is not of the form that is read"
    doors = {package: place or f"{layer}/" for layer, cell, place in rows for package in re.findall(r"\w+", cell)}
    return Rules([layer for layer, _, _ in rows], doors)


def imported_modules(source: str) -> Iterator[str]:
    """Every module that the source imports anywhere in it; `from a import b` counts as a.b, for b may be a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ("." * node.level + f"{node.module or ''}.{alias.name}" for alias in node.names)


def layer_of(path: Path) -> str:
    """The layer of a file, given its path in the package; `__main__` is a command line."""
    first = path.parts[0].removesuffix(".py")
    return "cli" if first == "__main__" else first


def offences(rules: Rules, package: Path) -> list[str]:
    """What in the package breaks the rules, one line each."""
    files = [path for path in sorted(package.rglob("*.py")) if path != package / "__init__.py"]
    return [
        f"{path.relative_to(package)} {offence}"
        for path in files
        for module in imported_modules(path.read_text())
        for offence in judge(rules, path.relative_to(package), module)
    ]


def judge(rules: Rules, path: Path, module: str) -> Iterator[str]:
    """What is wrong with a file importing a module."""
    for guarded in guarded_by(rules, module):
        if not path.as_posix().startswith(rules.doors[guarded]):
            yield f"imports {module}: only {rules.doors[guarded]} may"
    if module.startswith("."):
        yield f"imports {module}: write the absolute name"
    if module.startswith(f"{PACKAGE}."):
        yield from judge_layers(rules, layer_of(path), module.split(".")[1])


def guarded_by(rules: Rules, module: str) -> list[str]:
    """The guarded packages that a foreign module belongs to or wraps (torch.utils.tensorboard)."""
    return [part for part in module.split(".") if part in rules.doors and not module.startswith(f"{PACKAGE}.")]


def judge_layers(rules: Rules, own: str, other: str) -> Iterator[str]:
    """What is wrong with one layer importing from another."""
    unknown = [layer for layer in (own, other) if layer not in rules.layers]
    if unknown:
        yield f"is in or imports a layer that CONTRIBUTING.md does not list: {', '.join(unknown)}"
        return
    below = rules.layers.index(other) > rules.layers.index(own)
    if below or other in NEVER.get(own, ()) or other not in NEEDS_ONLY.get(own, rules.layers):
        yield f"imports {other}: {own} may not"


@pytest.fixture(scope="module")
def rules() -> Rules:
    return read_rules((ROOT / "CONTRIBUTING.md").read_text())


def test_the_table_is_read(rules: Rules) -> None:
    assert rules.layers[:2] == ["errors", "draws"]
    assert rules.layers[-1] == "cli"
    assert rules.doors["blobfile"] == rules.doors["obstore"] == "storage/"
    assert rules.doors["omegaconf"] == "config/load.py"


def test_every_folder_is_a_layer(rules: Rules) -> None:
    found = {layer_of(path.relative_to(ROOT / PACKAGE)) for path in (ROOT / PACKAGE).rglob("*.py")}
    assert found - {"__init__"} <= set(rules.layers)


def test_the_package_keeps_the_rules(rules: Rules) -> None:
    assert offences(rules, ROOT / PACKAGE) == []


def test_tools_leave_the_doors_to_the_package(rules: Rules) -> None:
    imports = {path.name: set(imported_modules(path.read_text())) for path in (ROOT / "tools").glob("*.py")}
    assert imports
    guarded = {name: [m for m in modules if guarded_by(rules, m)] for name, modules in imports.items()}
    assert not any(guarded.values()), guarded


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("storage/files.py", "from dist_diffusion.runs import lease"),
        ("models/unet.py", "def f():\n    import dist_diffusion.config.load"),
        ("data/loader.py", "from dist_diffusion import sampling"),
        ("engine/engine.py", "from dist_diffusion.data.order import Order"),
        ("tasks/diffusion.py", "from dist_diffusion.storage import files"),
        ("diffusion/losses.py", "from dist_diffusion import draws"),
        ("data/loader.py", "from . import order"),
        ("data/loader.py", "from ..draws import uniform"),
        ("data/loader.py", "import blobfile.azure"),
        ("data/loader.py", "from obstore.store import S3Store"),
        ("config/schema.py", "from omegaconf import OmegaConf"),
        ("training/loop.py", "import deepspeed as ds"),
        ("training/loop.py", "from torch.utils.tensorboard import SummaryWriter"),
        ("attic/old.py", "from dist_diffusion import errors"),
    ],
)
def test_an_offence_is_found(rules: Rules, tmp_path: Path, place: str, line: str) -> None:
    path = tmp_path / place
    path.parent.mkdir()
    path.write_text(line)
    assert len(offences(rules, tmp_path)) == 1


def test_what_is_allowed_is_no_offence(rules: Rules, tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "load.py").write_text("import omegaconf\nfrom dist_diffusion.config import schema\n")
    (tmp_path / "__main__.py").write_text("from dist_diffusion.cli.main import main\n")
    assert offences(rules, tmp_path) == []


def test_decode_workers_stay_torch_free() -> None:
    modules = ", ".join(f"{PACKAGE}.{name}" for name in TORCH_FREE)
    program = (
        f"import sys, {modules}; sys.exit(str([m for m in ('torch', 'webdataset', 'deepspeed') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "[]"
