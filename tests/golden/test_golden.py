"""The package gives openai/guided-diffusion's numbers, and tools/check_golden.py would say if it did not."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import check_golden
import numpy as np
import pytest
from golden_checks import cases
from golden_checks.folder import Folder
from golden_checks.report import Row, distance, measured, relative
from support import ROOT

from dist_diffusion.errors import DataError

DATA = Path(__file__).parent / "data"
Some = Callable[..., Path]


def rows(folder: Path) -> dict[str, Row]:
    return {row.name: row for row in cases.run(Folder(folder))}


def verdicts(folder: Path) -> dict[str, str]:
    """Of what did not pass."""
    return {name: row.verdict for name, row in rows(folder).items() if row.verdict != "pass"}


@pytest.fixture
def some(tmp_path: Path) -> Some:
    """A folder with some of the files, and of meta.json all but the networks that are left out."""

    def copy(*names: str) -> Path:
        for name in names:
            shutil.copy(DATA / name, tmp_path)
        meta = tmp_path / "meta.json"
        if meta.exists():
            content = json.loads(meta.read_text())
            content["nets"] = {key: net for key, net in content["nets"].items() if f"{key}.npz" in names}
            meta.write_text(json.dumps(content))
        return tmp_path

    return copy


def rewrite_meta(folder: Path, update: Callable[[dict], None]) -> None:
    """Writes meta.json anew, after a change."""
    content = json.loads((folder / "meta.json").read_text())
    update(content)
    (folder / "meta.json").write_text(json.dumps(content))


def change(folder: Path, stem: str, **arrays: np.ndarray) -> None:
    """Writes an npz anew, with some arrays replaced or added."""
    path = folder / f"{stem}.npz"
    with np.load(path) as archive:
        content = dict(archive)
    np.savez(path, **{**content, **arrays})


def with_one_number_off(folder: Path, stem: str, key: str, by: float) -> None:
    with np.load(folder / f"{stem}.npz") as archive:
        array = archive[key].copy()
    array.flat[array.size // 2] += by
    change(folder, stem, **{key: array})


def test_every_number_of_the_folder_is_within_tolerance() -> None:
    found = rows(DATA)
    assert not {name: str(row) for name, row in found.items() if row.verdict != "pass"}
    for stem in [path.stem for path in DATA.glob("*.npz")]:
        assert any(name.split()[0] == stem for name in found), stem
    assert sum("state_dict" in name for name in found) == 7


@pytest.mark.parametrize(
    ("stem", "key", "by"),
    [
        ("schedules", "cosine_50_betas", 1e-8),
        ("schedules", "spaced_10_10_20", 1),
        ("losses", "linear_ls1_kl0_resc0_px0_vb", 1e-3),
        ("losses", "cosine_ls1_kl1_resc0_px0_loss", 1.0),
        ("samplers", "linear_ls0_ddim_encode_out", 3e-5),
        ("samplers", "noise_tape_first_16", 3e-5),
        ("nll", "cosine_ls1_total_bpd", 1e-3),
        ("classifier_spatial", "grad", 1e-3),
        ("superres", "out", 2e-4),
        ("metrics", "logits", 20.0),
    ],
)
def test_a_changed_number_is_found_and_named(some: Some, stem: str, key: str, by: float) -> None:
    folder = (
        some("metrics.npz", "metrics.json") if stem == "metrics" else some(f"{stem}.npz", "meta.json", "losses.npz")
    )
    with_one_number_off(folder, stem, key, by)
    wrong = verdicts(folder)
    expected = {"metrics is_1", "metrics is_4"} if stem == "metrics" else {f"{stem} {key}"}
    assert wrong == dict.fromkeys(expected, "FAIL")


def test_another_salt_needs_other_weights(some: Some) -> None:
    folder = some("superres.npz", "meta.json")
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, "salt": 1}))
    assert verdicts(folder) == {"superres out": "FAIL"}


def test_a_state_dict_of_other_shapes_is_found(some: Some) -> None:
    folder = some("unet_plain_conv_updown.npz", "meta.json")
    meta = json.loads((folder / "meta.json").read_text())
    meta["nets"]["unet_plain_conv_updown"]["keys"]["out.2.weight"] = [6, 32, 3, 3]
    (folder / "meta.json").write_text(json.dumps(meta))
    found = rows(folder)["unet_plain_conv_updown state_dict"]
    assert found.verdict == "FAIL" and "out.2.weight" in found.note


def test_what_no_case_covers_is_said(some: Some) -> None:
    folder = some("schedules.npz", "metrics.npz", "metrics.json", "superres.npz", "meta.json")
    change(folder, "schedules", extra=np.zeros(3), linear_50_unheard_of=np.zeros(50))
    change(folder, "superres", more=np.zeros(1))
    shutil.copy(DATA / "unet_legacy_updown.npz", folder / "unet_of_nobody.npz")
    (folder / "other.json").write_text("{}")
    metrics = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps({**metrics, "beauty": 1.0}))
    assert verdicts(folder) == dict.fromkeys(
        [
            "other.json",
            "metrics beauty",
            "schedules linear_50_unheard_of",
            "schedules extra",
            "superres more",
            "unet_of_nobody.npz",
        ],
        "not run",
    )


def test_a_damaged_file_stops_no_other(some: Some) -> None:
    folder = some("schedules.npz", "nll.npz", "meta.json")
    (folder / "nll.npz").write_bytes((DATA / "nll.npz").read_bytes()[:5000])
    assert verdicts(folder) == {"nll.npz": "not run"}


def test_an_option_that_is_not_known_is_no_pass(some: Some) -> None:
    folder = some("superres.npz", "meta.json")
    meta = json.loads((folder / "meta.json").read_text())
    meta["nets"]["superres"]["options"]["flavour"] = 3
    (folder / "meta.json").write_text(json.dumps(meta))
    wrong = verdicts(folder)
    assert {"superres state_dict", "superres out"} <= set(wrong) and set(wrong.values()) == {"not run"}


def test_encoding_needs_the_images_of_another_file(some: Some) -> None:
    folder = some("samplers.npz", "meta.json")
    wrong = verdicts(folder)
    assert set(wrong.values()) == {"not run"} and len(wrong) == 4 and all("encode" in name for name in wrong)
    shutil.copy(DATA / "nll.npz", folder)
    assert not verdicts(folder)


def test_schedules_need_no_meta(some: Some) -> None:
    assert not verdicts(some("schedules.npz"))


def test_a_nan_is_no_pass_and_a_crash_no_end() -> None:
    assert measured("a", 1.0, lambda: float("nan")).verdict == "FAIL"
    failed = measured("b", 1.0, lambda: 1 // 0)
    assert failed.verdict == "FAIL" and "ZeroDivisionError" in str(failed)


@pytest.mark.parametrize(
    ("file", "content", "named"),
    [
        ("meta.json", [1], "meta.json must"),
        ("meta.json", {"nets": None}, "nets must"),
        ("meta.json", {"nets": [1]}, "nets must"),
        ("meta.json", {"nets": {"superres": None}}, "nets, superres must"),
        ("metrics.json", [1], "metrics.json must"),
    ],
)
def test_json_of_another_shape_is_refused_by_name(tmp_path: Path, file: str, content: object, named: str) -> None:
    (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(DataError, match=named):
        Folder(tmp_path)


def test_meta_without_networks_is_a_folder(some: Some) -> None:
    folder = some("nll.npz", "meta.json")
    rewrite_meta(folder, lambda meta: meta.pop("nets"))
    assert not verdicts(folder)


def test_images_of_another_shape_stop_no_other_case(some: Some) -> None:
    folder = some("losses.npz", "schedules.npz", "meta.json")
    change(folder, "losses", x_start=np.zeros(4, np.float32))
    wrong = verdicts(folder)
    assert "FAIL" in wrong.values() and all(name.startswith("losses ") for name in wrong)
    assert rows(folder)["schedules linear_50_betas"].verdict == "pass"


def test_other_files_and_folders_are_said_and_notes_are_not(some: Some) -> None:
    folder = some("schedules.npz")
    for name in ("nll.NPZ", "more.txt"):
        shutil.copy(DATA / "nll.npz", folder / name)
    for name in ("more", "nll.npz"):
        (folder / name).mkdir()
    shutil.copy(DATA / "nll.npz", folder / "more")
    (folder / "README.md").write_text("notes")
    assert verdicts(folder) == dict.fromkeys(["nll.NPZ", "more.txt", "more", "nll.npz"], "not run")


def test_a_network_that_says_it_is_unconditional_is_so_whatever_its_classes(some: Some) -> None:
    folder = some("unet_plain_conv_updown.npz", "meta.json")
    rewrite_meta(folder, lambda meta: meta["nets"]["unet_plain_conv_updown"]["options"].update(num_classes=1000))
    assert not verdicts(folder)


def test_infinities_are_equal_to_themselves_alone() -> None:
    infinite, finite = np.array([1.0, np.inf]), np.array([1.0, 2.0])
    assert distance(infinite, infinite) == relative(infinite, infinite) == 0
    for ours, reference in [(infinite, finite), (finite, infinite), (infinite, -infinite), (infinite * np.nan,) * 2]:
        assert not distance(ours, reference) <= 1e300 and not relative(ours, reference) <= 1e300


def test_a_table_that_ends_without_signal_passes(tmp_path: Path) -> None:
    alpha_bar = np.cumprod(1 - np.linspace(0.005, 1.0, 20))
    assert alpha_bar[-1] == 0
    with np.errstate(divide="ignore"):
        np.savez(tmp_path / "schedules.npz", linear_20_sqrt_recip_alphas_cumprod=np.sqrt(1 / alpha_bar))
    assert not verdicts(tmp_path)


def test_a_folder_without_values_is_refused(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("nothing")
    with pytest.raises(DataError, match="holds no golden values"):
        Folder(tmp_path)


def test_the_tool_on_metrics_alone(
    some: Some, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["check_golden.py", str(some("metrics.npz", "metrics.json"))])
    assert check_golden.main() == 0
    assert capsys.readouterr().out.endswith("8 pass, 0 FAIL, 0 not run\n")


def test_the_tool_on_a_changed_table(
    some: Some, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = some("schedules.npz")
    with_one_number_off(folder, "schedules", "cosine_50_betas", 1e-8)
    monkeypatch.setattr(sys, "argv", ["check_golden.py", str(folder)])
    assert check_golden.main() == 1
    *table, summary = capsys.readouterr().out.splitlines()
    assert summary == "43 pass, 1 FAIL, 0 not run"
    assert [line.split()[:2] for line in table if line.endswith("FAIL")] == [["schedules", "cosine_50_betas"]]


def test_the_tool_on_a_folder_that_is_not_there(tmp_path: Path) -> None:
    command = [sys.executable, "tools/check_golden.py", str(tmp_path / "absent")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and done.stderr == f"error: {tmp_path}/absent: no such folder\n"
