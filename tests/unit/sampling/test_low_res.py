"""What a super-resolution job starts from: rows by index, what is refused, and what guidance makes of it."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from dist_diffusion.config.resolve import resolve
from dist_diffusion.config.schema import (
    DataOptions,
    DiffusionRecipe,
    SampleRecipe,
    SuperResolutionRecipe,
    TrainRecipe,
)
from dist_diffusion.diffusion.options import GuidanceOptions, ObjectiveOptions, SamplerOptions
from dist_diffusion.errors import ConfigError, DataError
from dist_diffusion.models.build import build
from dist_diffusion.models.options import SuperResolutionOptions, UNetOptions
from dist_diffusion.sampling.generate import Generator, make_generator
from dist_diffusion.sampling.job import Job, create_job, find_job, pin_low_res
from dist_diffusion.sampling.low_res import LowRes, check_count, pinned_rows
from dist_diffusion.sampling.models import Models
from dist_diffusion.weights.load import LoadedModel

SMALL = {"channels": 32, "num_res_blocks": 1, "channel_mult": (1, 2), "attention_resolutions": (4,)}
UPSAMPLER = SuperResolutionRecipe(
    data=DataOptions(image_size=8),
    model=SuperResolutionOptions(low_res_size=4, **SMALL),  # type: ignore[arg-type]
    objective=ObjectiveOptions(p_uncond=0.1),
)
STEPS = "4"


def unconditional(recipe: SuperResolutionRecipe) -> SuperResolutionRecipe:
    """The recipe without classes."""
    model = dataclasses.replace(recipe.model, num_classes=0)
    return dataclasses.replace(recipe, model=model, objective=ObjectiveOptions())


def network(recipe: DiffusionRecipe, seed: int = 0) -> LoadedModel:
    """A network of three classes whose weights are noise, so that all of its inputs matter."""
    resolved: TrainRecipe = resolve(recipe, num_classes=3)
    torch.manual_seed(seed)
    module = build(resolved.model).eval().requires_grad_(False)
    for parameter in module.parameters():
        parameter += 0.05 * torch.randn_like(parameter)
    return LoadedModel(module, resolved, f"{recipe.task}.safetensors", {})


def generator(
    model: LoadedModel, low_res: LowRes | None, sampler: str = "ddim", reference: LoadedModel | None = None, **guided
) -> Generator:
    guidance = GuidanceOptions(**guided)
    return make_generator(
        Models(model, unconditional=reference), SamplerOptions(sampler, STEPS), guidance, 0, "cpu", low_res
    )


IMAGES = np.random.default_rng(0).integers(0, 256, (10, 4, 4, 3), dtype=np.uint8)
LABELS = np.arange(10) % 3

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes an npz of images and, where given, labels."""

    def run(
        images: np.ndarray = IMAGES, labels: np.ndarray | None = LABELS, name: str = "low.npz", save=np.savez
    ) -> str:
        save(tmp_path / name, images, *(() if labels is None else (labels,)))
        return str(tmp_path / name)

    return run


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_rows_are_read_by_index(write: Write, save: Callable) -> None:
    low_res = LowRes(write(save=save, labels=LABELS.astype(np.int32)))
    assert isinstance(low_res.source.pixels(), np.memmap) == (save is np.savez)
    images = low_res.images(range(3, 7), "cpu")
    assert images.dtype == torch.float32 and images.shape == (4, 3, 4, 4)
    assert np.array_equal(((images + 1) * 127.5).round().permute(0, 2, 3, 1).numpy(), IMAGES[3:7])
    labels = low_res.labels(range(3, 7))
    assert labels is not None and labels.dtype == np.int64 and labels.tolist() == LABELS[3:7].tolist()
    assert LowRes(write(labels=None, save=save)).labels([0]) is None


def test_both_kinds_of_npz_pin_the_same_rows(write: Write) -> None:
    stored, packed = (LowRes(write(name=f"{save.__name__}.npz", save=save)) for save in (np.savez, np.savez_compressed))
    for num in (1, 7, 10):
        assert stored.source.rows_checksum(num) == packed.source.rows_checksum(num)


def test_a_sample_job_is_its_largest_result(tmp_path: Path, write: Write) -> None:
    (tmp_path / "job.json").write_text(json.dumps({}))
    with pytest.raises(DataError, match="not finished"):
        LowRes(str(tmp_path))
    for num in (9, 10):
        write(IMAGES[:num], LABELS[:num], f"samples_{num}x4x4x3.npz")
    assert LowRes(str(tmp_path)).source.num_images == 10


def test_what_cannot_be_read_is_named(tmp_path: Path, write: Write) -> None:
    (tmp_path / "text.npz").write_text("text")
    (tmp_path / "empty").mkdir()
    refused = {
        str(tmp_path / "none.npz"): "does not exist",
        str(tmp_path / "text.npz"): "is not an npz",
        str(tmp_path / "empty"): "neither an npz nor the folder of a sample job",
        write(IMAGES.astype(np.float32), name="a.npz"): "is float32",
        write(IMAGES[:, :2], name="b.npz"): "not uint8 (N, size, size, 3)",
        write(labels=LABELS[:4], name="c.npz"): "not 10 integer labels",
    }
    for path, message in refused.items():
        with pytest.raises(DataError) as caught:
            LowRes(path)
        assert path in str(caught.value) and message in str(caught.value)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damage_is_found_before_anything_is_pinned(write: Write, save: Callable) -> None:
    path = write(np.random.default_rng(1).integers(0, 256, (600, 4, 4, 3), dtype=np.uint8), None, save=save)
    whole = bytearray(Path(path).read_bytes())
    middle = bytearray(whole)
    middle[len(whole) // 2] ^= 1
    for content in (whole[:-200], middle):
        Path(path).write_bytes(content)
        with pytest.raises(DataError, match=r"low\.npz"):
            # The first row alone is asked for, and is as it was.
            pinned_rows(LowRes(path), 1, None)


def test_more_samples_than_images_are_refused(write: Write) -> None:
    low_res = LowRes(write())
    check_count(low_res, 10)
    with pytest.raises(ConfigError, match=r"num_samples=11, but low_res=.* holds 10 images"):
        check_count(low_res, 11)


def test_images_that_the_model_cannot_start_from_are_refused(write: Write) -> None:
    model = network(UPSAMPLER)
    larger = np.zeros((10, 8, 8, 3), dtype=np.uint8)
    refused: list[tuple[str | None, str]] = [
        (None, "super_resolution.safetensors is a super-resolution model: give low_res=NPZ_OR_JOB, its images of 4 px"),
        (
            write(larger, name="a.npz"),
            "a.npz holds images of 8 px, model=super_resolution.safetensors starts from 4 px",
        ),
        (write(labels=None, name="b.npz"), "b.npz has no labels (arr_1)"),
        (write(labels=LABELS + 1, name="c.npz"), "c.npz has labels from 1 to 3, this job knows 0 to 2"),
        (write(labels=LABELS - 1, name="d.npz"), "d.npz has labels from -1 to 1, this job knows 0 to 2"),
    ]
    for path, message in refused:
        with pytest.raises(ConfigError) as caught:
            generator(model, None if path is None else LowRes(path))
        assert message in str(caught.value)
    plain = network(DiffusionRecipe(data=UPSAMPLER.data, model=UNetOptions(**SMALL)))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"model=diffusion\.safetensors makes images from noise alone, leave low_res"):
        generator(plain, LowRes(write()))


def test_the_unconditional_model_must_start_from_the_same_size(write: Write) -> None:
    model, low_res = network(UPSAMPLER), LowRes(write())
    other = dataclasses.replace(UPSAMPLER, model=dataclasses.replace(UPSAMPLER.model, low_res_size=2))
    plain = DiffusionRecipe(data=UPSAMPLER.data, model=UNetOptions(num_classes=0, **SMALL))  # type: ignore[arg-type]
    for reference, found in [(network(unconditional(other)), "8 px from 2 px"), (network(plain), "0 classes and 8 px")]:
        with pytest.raises(ConfigError) as caught:
            generator(model, low_res, reference=reference, mode="cfg")
        assert "an unconditional model of 8 px from 4 px" in str(caught.value)
        assert str(caught.value).endswith(found)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_a_sample_follows_its_image_and_label_and_no_others(write: Write, sampler: str) -> None:
    """Image i of a batch, whatever the others are: the filler may be anything."""
    model = network(UPSAMPLER)
    make = generator(model, LowRes(write()), sampler, mode="cfg", cfg_scale=2.0)
    images, labels = make(range(4, 8))
    assert labels is not None and labels.tolist() == LABELS[4:8].tolist()
    for change in ("image", "label"):
        changed, relabelled = IMAGES.copy(), LABELS.copy()
        if change == "image":
            changed[5] = 255 - changed[5]
        else:
            relabelled[5] = 0
        other, _ = generator(model, LowRes(write(changed, relabelled)), sampler, mode="cfg", cfg_scale=2.0)(range(4, 8))
        assert [i for i in range(4) if (other[i] != images[i]).any()] == [1]


def test_no_image_depends_on_where_the_smaller_ones_end(write: Write) -> None:
    model = network(UPSAMPLER)
    whole, _ = generator(model, LowRes(write()))(range(4, 8))
    # Of the batch 4 to 7 only image 4 is there: the filler begins again at image 0.
    short, labels = generator(model, LowRes(write(IMAGES[:5], LABELS[:5])))(range(4, 8))
    assert np.array_equal(short[0], whole[0])
    assert labels is not None and labels.tolist() == [*LABELS[4:5], *LABELS[:3]]
    assert (short[1:] != whole[1:]).any()


def test_both_ways_of_mixing_give_each_half_its_image(write: Write) -> None:
    """The null label's half and a separate unconditional model with the same weights say the same."""
    model, low_res = network(UPSAMPLER), LowRes(write())
    weights = model.module.state_dict()
    null_row = weights.pop("label_emb.weight")[-1]
    alone = network(unconditional(UPSAMPLER))
    weights["time_embed.2.bias"] = weights["time_embed.2.bias"] + null_row
    alone.module.load_state_dict(weights)
    one_pass, _ = generator(model, low_res, mode="cfg", cfg_scale=3.0)(range(6))
    two_models, _ = generator(model, low_res, reference=alone, mode="cfg", cfg_scale=3.0)(range(6))
    assert np.abs(one_pass.astype(int) - two_models).max() <= 1
    conditional, _ = generator(model, low_res)(range(6))
    assert np.abs(one_pass.astype(int) - conditional).max() > 1


def test_an_unconditional_model_carries_labels_that_are_there(write: Write) -> None:
    model = network(unconditional(UPSAMPLER))
    images, labels = generator(model, LowRes(write(labels=LABELS + 100)))(range(4))
    without, none = generator(model, LowRes(write(labels=None)))(range(4))
    assert np.array_equal(images, without) and none is None
    assert labels is not None and labels.tolist() == (LABELS[:4] + 100).tolist()


def test_stages_of_one_seed_draw_noise_of_their_own(write: Write) -> None:
    """Noise that made the smaller image must not come again: nothing else may tie a sample to it."""
    recipe = dataclasses.replace(UPSAMPLER, data=DataOptions(image_size=16))
    seen: list[torch.Tensor] = []

    def remembering(module: torch.nn.Module, inputs: tuple) -> None:
        seen.append(inputs[0])

    first = network(DiffusionRecipe(data=UPSAMPLER.data, model=UNetOptions(**SMALL)))  # type: ignore[arg-type]
    for model, low_res in [(first, None), (network(UPSAMPLER), LowRes(write())), (network(recipe), LowRes(write()))]:
        model.module.register_forward_pre_hook(remembering)
        generator(model, low_res)([0])
    one, two, three = (seen[i].flatten()[:64] for i in range(0, len(seen), int(STEPS)))
    assert not (one == two).any() and not (two == three).any()


def sampling(out: Path, low_res: str | None, num: int = 5) -> SampleRecipe:
    return SampleRecipe(model="m", out=str(out), low_res=low_res, num_samples=num)


def start(recipe: SampleRecipe, export: Path) -> Job:
    export.write_text("the job only copies it")
    assert recipe.low_res is not None
    pinned = pinned_rows(LowRes(recipe.low_res), recipe.num_samples, None)
    return create_job(recipe, {"model": ("m", str(export))}, 1, "cpu", pinned)


def test_a_job_pins_the_rows_that_it_was_asked_for(tmp_path: Path, write: Write) -> None:
    """They may move and have new ones behind them; then these are pinned too once they are asked for."""
    job = start(sampling(tmp_path / "out", write()), tmp_path / "export")
    assert job.low_res is not None and job.low_res.num_images == 5
    moved = LowRes(write(IMAGES[:8], LABELS[:8], name="moved.npz"))
    same = pinned_rows(moved, 3, job)
    assert (same.num_images, same.sha256, same.source) == (5, job.low_res.sha256, moved.source.path)
    job = pin_low_res(job, pinned_rows(moved, 7, job))
    assert json.loads((tmp_path / "out/job.json").read_text())["low_res"]["num_images"] == 7
    changed = IMAGES.copy()
    changed[6] += 1
    changed_label = LABELS.copy()
    changed_label[6] = 1 - changed_label[6]
    others = [
        write(changed, name="a.npz"),
        write(IMAGES[:6], LABELS[:6], name="b.npz"),
        write(labels=None, name="c.npz"),
    ]
    for path in [*others, write(labels=changed_label, name="d.npz")]:
        with pytest.raises(ConfigError) as caught:
            pinned_rows(LowRes(path), 5, job)
        assert f"a job of the first 7 images of {moved.source.path}, and low_res={path}" in str(caught.value)
    changed[:] = IMAGES
    changed[7] += 1
    assert pinned_rows(LowRes(write(changed)), 7, job).num_images == 7, "a row that was never asked for may change"


def test_a_job_keeps_its_low_res_or_its_lack_of_one(tmp_path: Path, write: Write) -> None:
    given, out = write(), tmp_path / "out"
    job = start(sampling(out, given), tmp_path / "export")
    assert find_job(sampling(out, "moved.npz", num=9), "cpu") == job
    with pytest.raises(ConfigError, match=rf"other settings \(low_res: {given} -> None\)"):
        find_job(sampling(out, None), "cpu")
    content = json.loads((out / "job.json").read_text())
    for without in ({**content, "low_res": None}, {key: content[key] for key in content if key != "low_res"}):
        (out / "job.json").write_text(json.dumps(without))
        assert find_job(sampling(out, None), "cpu") == dataclasses.replace(job, low_res=None)
        with pytest.raises(ConfigError, match=rf"other settings \(low_res: None -> {given}\)"):
            find_job(sampling(out, given), "cpu")
