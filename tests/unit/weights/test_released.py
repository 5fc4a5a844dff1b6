"""Released checkpoints in and out: bitwise, every mismatch named, and no code of a foreign file run."""

import dataclasses
import importlib.util
import os
import pickle
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support import ROOT

from dist_diffusion.errors import CheckpointError, ConfigError
from dist_diffusion.models.build import build
from dist_diffusion.storage import files as storage_files
from dist_diffusion.weights import files, flags, released
from dist_diffusion.weights.foreign import read_state_dict
from dist_diffusion.weights.load import load_model
from dist_diffusion.weights.shapes import common_prefix, nearest, network_shapes

BLOCKS = "channels: 32, num_res_blocks: 1, channel_mult: [1, 2], attention_resolutions: [4]"
RECIPES = {
    name: f"task: {task}\ndata: {{image_size: 8}}\nmodel: {{{BLOCKS}, {own}}}\n"
    for name, task, own in (
        ("unet", "diffusion", "num_classes: 5"),
        ("uncond", "diffusion", "num_classes: 0"),
        ("upsampler", "super_resolution", "num_classes: 5, low_res_size: 4"),
        ("classifier", "classifier", "num_classes: 5, num_head_channels: 32"),
    )
}
PRESETS = str(ROOT / "configs/adm")

State = dict[str, torch.Tensor]


@pytest.fixture
def presets(tmp_path: Path) -> str:
    folder = tmp_path / "presets"
    folder.mkdir()
    for name, text in RECIPES.items():
        (folder / f"{name}.yaml").write_text(text)
    return str(folder)


def state_of(preset: str, presets: str) -> State:
    torch.manual_seed(0)
    state = build(released.recipe_of(preset, presets).model).state_dict()
    return {name: tensor + 0.1 * torch.randn_like(tensor) for name, tensor in state.items()}


def save(state: object, path: Path) -> str:
    torch.save(state, path)
    return str(path)


def imported(source: str, preset: str, presets: str, out: Path) -> list[str]:
    said: list[str] = []
    released.import_checkpoint(source, preset, presets, str(out), said.append)
    return said


def same(a: State, b: State) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)


@pytest.mark.parametrize("preset", ["unet", "uncond", "upsampler"])
def test_in_and_out_again_is_bitwise(tmp_path: Path, presets: str, preset: str) -> None:
    recipe = Path(presets) / f"{preset}.yaml"
    recipe.write_text(recipe.read_text().replace("image_size: 8", "image_size: 64").replace("[1, 2]", "[1, 2, 3, 4]"))
    state = state_of(preset, presets)
    source = save(state, tmp_path / "theirs.pt")
    said = imported(source, preset, presets, tmp_path / "ours.safetensors")
    digest = storage_files.sha256(source)
    assert digest in said[0]
    loaded = load_model(str(tmp_path / "ours.safetensors"))
    assert loaded.info == {"source": "theirs.pt", "sha256": digest, "preset": preset}
    assert loaded.recipe == released.recipe_of(preset, presets)
    assert same(dict(loaded.module.state_dict()), state)
    released.export_checkpoint(loaded.path, None, str(tmp_path / "back.pt"), said.append)
    assert same(torch.load(tmp_path / "back.pt", weights_only=True), state)
    assert ("this model has 5" in said[-1]) == (preset != "uncond")
    assert said[2] == f"its flags in guided-diffusion: {flags.flags(loaded.recipe)}"


def test_order_precision_and_shared_memory_of_the_source_do_not_matter(tmp_path: Path, presets: str) -> None:
    """Checkpoints of half-precision runs are views of one long tensor."""
    state = state_of("classifier", presets)
    flat = torch.cat([tensor.half().flatten() for tensor in state.values()])
    sizes = [tensor.numel() for tensor in state.values()]
    views = {name: part.view(state[name].shape) for name, part in zip(state, flat.split(sizes), strict=True)}
    source = save(dict(reversed(views.items())), tmp_path / "half.pt")
    said = imported(source, "classifier", presets, tmp_path / "ours.safetensors")
    assert "converted from torch.float16" in said[0]
    expected = {name: tensor.half().float() for name, tensor in state.items()}
    assert same(dict(load_model(str(tmp_path / "ours.safetensors")).module.state_dict()), expected)


def test_files_of_the_format_before_torch_1_6_are_read(tmp_path: Path, presets: str) -> None:
    state = state_of("unet", presets)
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert same(read_state_dict(str(tmp_path / "old.pt")), state)


def test_every_mismatch_is_named_with_the_nearest_preset(tmp_path: Path, presets: str) -> None:
    state = state_of("unet", presets)
    del state["time_embed.0.bias"]
    state["out.9.weight"] = torch.zeros(1)
    state["out.2.bias"] = torch.zeros(4)
    out = tmp_path / "ours.safetensors"
    with pytest.raises(CheckpointError) as caught:
        imported(save(state, tmp_path / "wrong.pt"), "unet", presets, out)
    for part in (
        "wrong.pt is no checkpoint of unet",
        "the nearest preset is unet, but for 3 tensors:\n",
        "\n1 missing: time_embed.0.bias\n",
        "\n1 extra: out.9.weight\n",
        "\n1 of another shape: out.2.bias (4,), expected (6,)",
    ):
        assert part in str(caught.value)
    with pytest.raises(CheckpointError, match=r"of uncond; it fits unet:\n1 extra: label_emb\.weight$"):
        imported(save(state_of("unet", presets), tmp_path / "right.pt"), "uncond", presets, out)
    assert not out.exists()


def test_a_long_list_of_mismatches_is_whole(tmp_path: Path, presets: str) -> None:
    needed = network_shapes(released.recipe_of("unet", presets).model)
    with pytest.raises(CheckpointError) as caught:
        imported(save({}, tmp_path / "empty.pt"), "unet", presets, tmp_path / "ours.safetensors")
    first, last = str(caught.value).split("\n")
    assert first.endswith("of unet; no preset is near:")
    assert last == f"{len(needed)} missing: {', '.join(needed)}"


def test_the_nearest_of_the_papers_presets() -> None:
    presets = {name: network_shapes(released.recipe_of(name, PRESETS).model) for name in released.preset_names(PRESETS)}
    alike = "256x256_diffusion_uncond or lsun_bedroom or lsun_cat or lsun_horse or lsun_horse_nodropout"
    shapes = dict(presets["lsun_cat"])
    assert nearest(shapes, presets) == f"it fits {alike}"
    shapes["more"] = ()
    assert nearest(shapes, presets) == f"the nearest preset is {alike}, but for 1 tensor"
    # Fewer tensors would differ from a classifier's, which has fewer.
    narrow = dataclasses.replace(released.recipe_of("256x256_diffusion", PRESETS).model, channels=128)
    said = "the nearest preset is 256x256_diffusion or 64_256_upsampler, but for 566 tensors"
    assert nearest(network_shapes(narrow), presets) == said
    assert nearest({f"conv{i}.weight": (3, 3) for i in range(9)}, presets) == "no preset is near"
    assert nearest({}, presets) == "no preset is near"


def test_the_given_recipe_may_be_the_nearest(tmp_path: Path, presets: str) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(RECIPES["unet"].replace("channels: 32", "channels: 64"))
    state = state_of(str(mine), presets)
    del state["out.2.bias"]
    with pytest.raises(CheckpointError, match=r"nearest preset is \S*mine\.yaml, but for 1 tensor:\n1 missing: out\.2"):
        imported(save(state, tmp_path / "mine.pt"), str(mine), presets, tmp_path / "ours.safetensors")


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_a_common_prefix_is_recognised_and_the_printed_command_strips_it(
    tmp_path: Path, presets: str, kind: str
) -> None:
    state = state_of("unet", presets)
    wrapped, source = {f"module.{name}": tensor for name, tensor in state.items()}, tmp_path / f"ddp.{kind}"
    if kind == "pt":
        torch.save(wrapped, source)
    else:
        save_file(wrapped, source)
    with pytest.raises(CheckpointError, match=r"every name begins with module\.: strip it") as caught:
        imported(str(source), "unet", presets, tmp_path / "ours.safetensors")
    command, last = str(caught.value).split("\n")[1:]
    assert last == "without it, it fits unet"
    run_python(command, tmp_path)
    stripped = torch.load(tmp_path / "state_dict.pt", weights_only=True)
    assert same(dict(sorted(stripped.items())), dict(sorted(state.items())))


def run_python(command: str, folder: Path) -> None:
    program, *arguments = shlex.split(command)
    assert program == "python"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, check=True, timeout=60)


@pytest.mark.parametrize(
    ("names", "prefix"),
    [(["module.a.x", "module.a.y", "module.b"], "module."), (["time.a", "tim"], ""), (["a.b", "a.bc"], "a."), ([], "")],
)
def test_what_all_names_begin_with(names: list[str], prefix: str) -> None:
    assert common_prefix(names) == prefix


@pytest.mark.parametrize(
    ("value", "dtype"), [(float("nan"), torch.float32), (-float("inf"), torch.float16), (1e300, torch.float64)]
)
def test_values_that_are_not_finite_are_refused(tmp_path: Path, presets: str, value: float, dtype: torch.dtype) -> None:
    state, out = state_of("unet", presets), tmp_path / "ours.safetensors"
    for name in ("time_embed.0.bias", "out.2.weight"):
        state[name] = state[name].to(dtype)
        state[name].view(-1)[3] = value
    with pytest.raises(CheckpointError, match=r"not finite numbers in fp32, in time_embed\.0\.bias, out\.2\.weight:"):
        imported(save(state, tmp_path / "diverged.pt"), "unet", presets, out)
    assert not out.exists()


def test_names_that_share_a_tensor_are_imported(tmp_path: Path, presets: str) -> None:
    state = state_of("unet", presets)
    shared, flat = state["time_embed.0.bias"], torch.randn(200)
    state["time_embed.2.bias"] = shared
    twice = [name for name, tensor in state.items() if tensor.shape == (32,)][:2]
    state[twice[0]], state[twice[1]] = flat[:32], flat[16:48]
    imported(save(state, tmp_path / "shared.pt"), "unet", presets, tmp_path / "ours.safetensors")
    assert same(dict(load_model(str(tmp_path / "ours.safetensors")).module.state_dict()), state)


def test_names_of_the_file_cannot_steer_the_terminal(tmp_path: Path, presets: str) -> None:
    codes = "\x1b[31mred\nerror:\u202e"
    state = {**state_of("unet", presets), codes: torch.zeros(1)}
    with pytest.raises(CheckpointError) as caught:
        imported(save(state, tmp_path / "names.pt"), "unet", presets, tmp_path / "ours.safetensors")
    assert str(caught.value).endswith(f"\n1 extra: {codes!a}")
    for content in ({codes: 1}, {codes: {"a": torch.zeros(1)}}):
        with pytest.raises(CheckpointError) as caught:
            read_state_dict(save(content, tmp_path / "names.pt"))
        assert str(caught.value).replace("\n  python", "").isprintable()


class Evil:
    """What a pickle may do to whoever reads it."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.system, (f"touch {self.canary}",)


@pytest.mark.parametrize("kind", ["zip", "old", "pickle 0", "pickle 4"])
def test_a_pickle_that_would_run_code_is_refused_and_runs_none(
    tmp_path: Path, presets: str, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    canary, source = tmp_path / "canary", tmp_path / "evil.pt"
    evil = Evil(canary)
    if kind.startswith("pickle"):
        source.write_bytes(pickle.dumps(evil, protocol=int(kind[-1])))
    else:
        state = {**state_of("unet", presets), "x": evil}
        torch.save(state, source, _use_new_zipfile_serialization=kind == "zip")
    out = tmp_path / "ours.safetensors"
    code = tool(str(source), "--preset", f"{presets}/unet.yaml", str(out))
    said = capfd.readouterr()
    assert (code, said.out) == (2, "")
    assert said.err.startswith(f"error: {source} is refused: ")
    assert "run code of its own" in said.err
    if kind != "pickle 4":  # whose names torch does not look at
        assert f"({os.name}.system)" in said.err
    assert not canary.exists()
    assert not out.exists()
    pickle.loads(pickle.dumps(evil))
    assert canary.exists(), "the canary proves something only if the pickle works"


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ([torch.zeros(1)], "holds a list, not a state_dict"),
        ({"a": torch.zeros(1), "step": 3}, "its entry step is a int, not a tensor"),
        ({0: torch.zeros(1)}, "its entry 0 has a int for a name"),
        ({"a": torch.zeros(1, device="meta")}, "its entry a has no values"),
        ({"a": torch.zeros(1).to(torch.float8_e4m3fn)}, "its entry a is torch.float8_e4m3fn"),
        ({"a": torch.zeros(1, dtype=torch.int64)}, "its entry a is torch.int64"),
        ({"a": torch.eye(2).to_sparse()}, "its entry a is torch.float32, torch.sparse_coo"),
    ],
)
def test_what_is_no_state_dict_is_refused(tmp_path: Path, content: object, part: str) -> None:
    with pytest.raises(CheckpointError, match=part):
        read_state_dict(save(content, tmp_path / "other.pt"))


def test_the_parts_of_a_training_checkpoint_are_named_and_the_printed_command_saves_one(tmp_path: Path) -> None:
    model = {"a": torch.arange(3.0), "b": torch.zeros(1)}
    content = {"step": 3, "model": model, "ema": {"a": torch.ones(3)}, "optimizer": {"state": {}, "groups": [1]}}
    with pytest.raises(CheckpointError, match=r"state_dicts: model \(2 tensors\), ema \(1 tensor\)\.") as caught:
        read_state_dict(save(content, tmp_path / "it's all.pt"))
    run_python(str(caught.value).split("\n")[1].strip(), tmp_path)
    assert same(read_state_dict(str(tmp_path / "state_dict.pt")), model)


@pytest.mark.parametrize("how", ["empty", "text", "page", "cut", "flipped"])
def test_damaged_files_are_refused_in_plain_words(tmp_path: Path, how: str) -> None:
    path = Path(save({"a": torch.arange(1000.0)}, tmp_path / "damaged.pt"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # one of the tensor's
    made = {
        "empty": b"",
        "text": b"no checkpoint\n",
        "page": b"<!DOCTYPE html>",
        "cut": path.read_bytes()[:-100],
        "flipped": bytes(content),
    }
    path.write_bytes(made[how])
    with pytest.raises(CheckpointError, match=r"damaged\.pt is damaged") as caught:
        read_state_dict(str(path))
    assert not re.search("Error|Unsupported|enforce", str(caught.value))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_other_archives_are_called_by_their_names(tmp_path: Path) -> None:
    script, arrays = str(tmp_path / "script.pt"), tmp_path / "arrays.pt"
    torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(script)
    with pytest.raises(CheckpointError, match=r"script\.pt is a TorchScript archive"):
        read_state_dict(script)
    with open(arrays, "wb") as stream:
        np.savez(stream, mean=np.zeros(2), **{"\x1b": np.zeros(2)})
    with pytest.raises(
        CheckpointError, match=r"arrays\.pt is no file of torch\.save: it is a zip of mean\.npy, '\\x1b"
    ):
        read_state_dict(str(arrays))


def tool(*arguments: str) -> int:
    """The script's exit code, its `main` called in this process."""
    spec = importlib.util.spec_from_file_location("tool", ROOT / "tools/import_guided_diffusion.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before, sys.argv = (sys.argv, list(sys.path)), ["import_guided_diffusion.py", *arguments]
    try:
        spec.loader.exec_module(module)
        return module.main()
    finally:
        sys.argv, sys.path = before


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (
            ["a.pt", "--preset", "imagenet", "b.safetensors"],
            "no preset imagenet: give the path",
        ),
        (["a.pt", "--preset", "64x64_classifier", "b.safetensors"], "cannot read a.pt"),
        (["a.pt", "--preset", "gone.yaml", "b.safetensors"], "gone.yaml: no such recipe"),
        (["a.pt", "b.safetensors"], "--preset is missing: which model a.pt is of, one of 128_512_upsampler, "),
        (
            ["a.pt", "--preset", "64x64_classifier", "--ema", "ema_0", "b.safetensors"],
            "--ema=ema_0 chooses among a run's",
        ),
        (["a.safetensors", "--preset", "64x64_classifier", "b.pt"], "--preset is for the way in"),
        (["a.safetensors", "b.npz"], "OUT ends in .safetensors, or in .pt"),
        (["a.safetensors", "b.pt"], "a.safetensors: no such run or export"),
    ],
)
def test_wrong_command_lines(arguments: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert part in error
    if "no preset" in part:
        assert all(path.stem in error for path in Path(PRESETS).glob("*.yaml"))
        assert "base" not in error


def test_a_recipe_without_its_classes_is_no_preset(tmp_path: Path, presets: str) -> None:
    path = tmp_path / "open.yaml"
    path.write_text(RECIPES["unet"].replace(", num_classes: 5", ""))
    with pytest.raises(ConfigError, match=r"open\.yaml: model\.num_classes=None"):
        released.recipe_of(str(path), presets)
    path.write_text(RECIPES["classifier"].replace("num_classes: 5", "num_classes: 0"))
    with pytest.raises(ConfigError, match=r"open\.yaml: model\.num_classes=0"):
        released.recipe_of(str(path), presets)


ADM = "task: diffusion\ndata: {image_size: 64}\nmodel: {channels: 32, num_res_blocks: 1, num_classes: 5}\n"


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        (ADM, []),
        (ADM + "diffusion: {variance: fixed_large, prediction: x0}\n", []),
        (ADM + "objective: {p_uncond: 0.1}\n", ["model.null_label=True"]),
        (ADM + "diffusion: {prediction: v}\n", ["diffusion.prediction=v"]),
        (
            ADM + "diffusion: {schedule: log_snr, variance: fixed_small}\n",
            ["diffusion.schedule=log_snr", "diffusion.variance=fixed_small"],
        ),
        (ADM.replace("64}", "128}").replace("channels: 32", "channels: 32, channel_mult: [0.5, 1]"), ["(0.5, 1.0)"]),
        (RECIPES["classifier"], ["num_head_channels=32", "channel_mult=(1.0, 2.0)"]),
        (
            RECIPES["upsampler"].replace("channels: 32", "channels: 32, new_attention_order: true"),
            ["order=True", "mult"],
        ),
    ],
)
def test_what_guided_diffusion_cannot_run_is_named(tmp_path: Path, text: str, refused: list[str]) -> None:
    (tmp_path / "given.yaml").write_text(text)
    recipe = released.recipe_of(str(tmp_path / "given.yaml"), PRESETS)
    wrong = released.unsupported(recipe)
    assert len(wrong) == len(refused)
    assert all(part in " ".join(wrong) for part in refused)
    if refused and "classifier" in text:
        files.save(str(tmp_path / "m.safetensors"), build(recipe.model).state_dict(), recipe, {})
        with pytest.raises(ConfigError, match=r"m\.safetensors: guided-diffusion cannot run this model: .*=32"):
            released.export_checkpoint(str(tmp_path / "m.safetensors"), None, str(tmp_path / "back.pt"), print)
        assert not (tmp_path / "back.pt").exists()


UNET_FLAGS = {
    "unet": (
        "--image_size 64 --num_channels 32 --num_res_blocks 1 --attention_resolutions 16,8 --num_heads 4 "
        "--num_heads_upsample -1 --num_head_channels -1 --use_scale_shift_norm True --resblock_updown True "
        "--dropout 0.0 --class_cond True --use_new_attention_order False --learn_sigma True --predict_xstart False "
        "--use_kl False --rescale_learned_sigmas False "
        "--diffusion_steps 1000 --noise_schedule linear --rescale_timesteps False"
    ),
    "other unet": (
        "--image_size 32 --num_channels 32 --num_res_blocks 1 --attention_resolutions 64 --num_heads 2 "
        "--num_heads_upsample 1 --num_head_channels -1 --use_scale_shift_norm False --resblock_updown False "
        "--dropout 0.3 --class_cond False --channel_mult 1,2 --use_new_attention_order True --learn_sigma False "
        "--predict_xstart True --use_kl True --rescale_learned_sigmas False "
        "--diffusion_steps 4000 --noise_schedule cosine --rescale_timesteps True"
    ),
}
OTHER = """task: diffusion
data: {image_size: 32}
diffusion: {variance: fixed_large, rescale_timesteps: true, prediction: x0, num_timesteps: 4000, schedule: cosine}
objective: {loss: kl}
model: {channels: 32, num_res_blocks: 1, channel_mult: [1, 2], attention_resolutions: [], num_classes: 0, num_heads: 2,
        num_heads_upsample: 1, resblock_updown: false, new_attention_order: true, scale_shift_norm: false, dropout: 0.3}
"""


@pytest.mark.parametrize(("text", "expected"), [(ADM, UNET_FLAGS["unet"]), (OTHER, UNET_FLAGS["other unet"])])
def test_the_flags_of_a_unet(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "given.yaml").write_text(text)
    recipe = released.recipe_of(str(tmp_path / "given.yaml"), PRESETS)
    assert released.unsupported(recipe) == []
    assert flags.flags(recipe) == expected


def test_the_flags_of_an_upsampler_and_a_classifier() -> None:
    """An upsampler has no flags for its sizes' multipliers; a classifier's stand beside a diffusion model's."""
    upsampler = flags.flags(released.recipe_of("128_512_upsampler", PRESETS))
    assert upsampler.startswith("--large_size 512 --small_size 128 --num_channels 192 ")
    assert not re.search("image_size|channel_mult|attention_order", upsampler)
    assert "--num_head_channels 64 " in upsampler
    assert flags.flags(released.recipe_of("64x64_classifier", PRESETS)) == (
        "--image_size 64 --classifier_width 128 --classifier_depth 4 --classifier_attention_resolutions 32,16,8 "
        "--classifier_use_scale_shift_norm True --classifier_resblock_updown True --classifier_pool attention "
        "--diffusion_steps 1000 --noise_schedule cosine --rescale_timesteps False"
    )
    assert "channel_mult" not in flags.flags(released.recipe_of("512x512_diffusion", PRESETS))
