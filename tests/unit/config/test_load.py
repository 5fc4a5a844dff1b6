"""Recipes: bases, overrides, and messages that name file and key."""

import json
from pathlib import Path

import pytest

from dist_diffusion.config import load
from dist_diffusion.config.checks import check_train
from dist_diffusion.config.protected import changes, refuse_protected
from dist_diffusion.config.resolve import resolve
from dist_diffusion.config.sampling_checks import check_sample
from dist_diffusion.config.schema import ClassifierRecipe, DiffusionRecipe, SampleRecipe, SuperResolutionRecipe
from dist_diffusion.errors import CheckpointError, ConfigError

LOG_SNR = ["diffusion.schedule=log_snr", "diffusion.variance=fixed_mix", "objective.loss=simple"]
RECIPE = "task: diffusion\nrun_dir: r\ndata: {shards: s}\ntrain: {global_batch: 24, steps: 5}\n"


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_overrides_win_over_the_file_and_the_file_over_its_base(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", "task: diffusion\nseed: 1\noptim: {lr: 1e-3, weight_decay: 0.5}\n")
    path = write(tmp_path, "a.yaml", "base: base.yaml\nseed: 2\noptim: {lr: 2e-4}\n")
    recipe = load.load_train(path, ["seed=3", "model.channel_mult=[1,2]"])
    assert isinstance(recipe, DiffusionRecipe)
    assert (recipe.seed, recipe.optim.lr, recipe.optim.weight_decay) == (3, 2e-4, 0.5)
    assert recipe.model.channel_mult == (1, 2)


def test_task_chooses_the_schema(tmp_path: Path) -> None:
    path = write(tmp_path, "c.yaml", "task: classifier\n")
    assert isinstance(load.load_train(path, []), ClassifierRecipe)


@pytest.mark.parametrize(
    ("text", "overrides", "parts"),
    [
        ("task: diffusion\noptim: {lrr: 1}\n", [], ["a.yaml", "optim.lrr", "did you mean 'lr'"]),
        ("task: diffusion\n", ["train.stepz=3"], ["the command line", "train.stepz", "did you mean 'steps'"]),
        ("task: diffusion\n", ["train.steps=many"], ["the command line", "train.steps", "many"]),
        ("task: diffusion\n", ["diffusion.schedule=cosin"], ["diffusion.schedule", "linear", "cosine"]),
        ("task: difusion\n", [], ["a.yaml", "task=difusion", "classifier"]),
        ("seed: 1\n", [], ["a.yaml", "no task"]),
        ("task: [", [], ["a.yaml", "not YAML"]),
        ("base: a.yaml\n", [], ["a.yaml", "its own base"]),
        ("base: gone.yaml\n", [], ["gone.yaml", "no such recipe"]),
        ("task: diffusion\n", ["train.steps"], ["train.steps", "key=value"]),
        ("task: diffusion\n", ["run_dir=[1"], ["run_dir=[1", "the command line"]),
        ("task: diffusion\nrun_dir: ${gone}\n", [], ["run_dir", "gone"]),
    ],
)
def test_wrong_recipes(tmp_path: Path, text: str, overrides: list[str], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load.load_train(write(tmp_path, "a.yaml", text), overrides)
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_recipe_survives_dict_and_yaml(tmp_path: Path) -> None:
    recipe = load.load_train(write(tmp_path, "a.yaml", RECIPE), ["deepspeed.extra.comms_logger.enabled=true"])
    assert load.from_dict(load.to_dict(recipe), "x") == recipe
    assert load.load_train(write(tmp_path, "b.yaml", load.to_yaml(recipe)), []) == recipe


@pytest.mark.parametrize(
    ("overrides", "world", "part"),
    [
        ([], 5, "train.global_batch=24 is not divisible by the 5 ranks"),
        (["train.micro_batch=5"], 2, "train.micro_batch=5"),
        (["data.canonical_streams=7"], 2, "data.canonical_streams=7"),
        (["engine.zero_stage=0", "engine.precision=bf16"], 1, "engine.precision=bf16"),
        (["engine.zero_stage=4"], 1, "engine.zero_stage=4"),
        (["run_dir=null"], 1, "run_dir is not given"),
        (["data.shards=null"], 1, "data.shards is not given"),
        (["objective.p_uncond=1.5"], 1, "objective.p_uncond=1.5"),
        (["diffusion.variance=fixed_small"], 1, "objective.loss=hybrid"),
        (["checkpoint.export=[ema_1]"], 1, "checkpoint.export names ema_1"),
        (["train.steps=0"], 1, "train.steps=0"),
        (["threads=0"], 1, "threads=0"),
        (["checkpoint.keep=-1"], 1, "checkpoint.keep=-1"),
        (["ema.decays=[1.5]"], 1, "ema.decays holds 1.5"),
        (["diffusion.num_timesteps=10"], 1, "diffusion.num_timesteps=10"),
        (["optim.lr=-1"], 1, "optim.lr=-1"),
        (["preview.every_commits=0"], 1, "preview.every_commits=0"),
        (["preview.num_images=4", "preview.cfg_scale=2"], 1, "preview.cfg_scale=2"),
        (["model.in_channels=1"], 1, "model.in_channels=1"),
        (
            ["diffusion.num_timesteps=1", "diffusion.schedule=cosine"],
            1,
            "diffusion.num_timesteps=1: expected 2 or more",
        ),
        (["diffusion.variance_mix=1.5"], 1, "diffusion.variance_mix=1.5: expected 0 to 1"),
        (["diffusion.log_snr_max=.nan"], 1, "diffusion.log_snr_max=nan"),
        (["diffusion.log_snr_min=-2000"], 1, "diffusion.log_snr_min=-2000"),
        ([*LOG_SNR, "objective.loss=kl"], 1, "objective.loss=kl needs timesteps"),
        ([*LOG_SNR, "diffusion.prediction=mean"], 1, "diffusion.prediction=mean needs timesteps"),
        ([*LOG_SNR, "objective.timesteps=loss_aware"], 1, "objective.timesteps=loss_aware needs timesteps"),
        (["objective.loss=simple"], 1, "objective.loss=simple trains no variance"),
        (["objective.loss=kl", "objective.weighting=edm"], 1, "objective.weighting=edm"),
        (["diffusion.sigma_data=.nan"], 1, "diffusion.sigma_data=nan"),
        (["objective.timesteps=log_normal"], 1, "objective.timesteps=log_normal needs noise levels"),
        ([*LOG_SNR, "objective.log_sigma_std=0"], 1, "objective.log_sigma_std=0"),
        ([*LOG_SNR, "objective.log_sigma_mean=.nan"], 1, "objective.log_sigma_mean=nan"),
        (["objective.min_snr_gamma=0"], 1, "objective.min_snr_gamma=0"),
        (["optim.lr=.nan"], 1, "optim.lr=nan"),
        (["optim.lr=.inf"], 1, "optim.lr=inf"),
        (["optim.weight_decay=-1"], 1, "optim.weight_decay=-1"),
        (["optim.clip_norm=.nan"], 1, "optim.clip_norm=nan"),
        (["optim.betas=[0.9,1.0]"], 1, "optim.betas holds 1.0"),
        (["model.dropout=2"], 1, "model.dropout=2"),
        (["model.channels=0"], 1, "model.channels=0"),
        (["model.num_res_blocks=-1"], 1, "model.num_res_blocks=-1"),
        (["model.channel_mult=[]"], 1, "model.channel_mult is empty"),
        (["model.channel_mult=[0,1]"], 1, "model.channel_mult holds 0"),
        (["model.attention_resolutions=[0]"], 1, "model.attention_resolutions holds 0"),
        (["model.num_head_channels=-1"], 1, "model.num_head_channels=-1: expected 1 or more, or null"),
        (["model.num_heads_upsample=-1"], 1, "model.num_heads_upsample=-1"),
        (["engine.zero_stage=0", "engine.precision=fp16"], 1, "engine.precision=fp16 at engine.zero_stage=0"),
        (["engine.zero_stage=0", "engine.offload_optimizer=true"], 1, "engine.offload_optimizer: at engine.zero_stage"),
        (["engine.zero_stage=3", "engine.compile=true"], 1, "engine.compile: its gathers"),
        (["engine.loss_scale=1000"], 1, "engine.loss_scale=1000: expected a power of 2"),
        (["engine.loss_scale=2", "engine.loss_scale_floor=4"], 1, "engine.loss_scale_floor=4 is above"),
        (["engine.peak_tflops=0"], 1, "engine.peak_tflops=0"),
        (["optim.decay_from_images=5"], 1, "optim.decay_from_images is of optim.decay"),
        (["optim.decay=inverse_sqrt"], 1, "optim.decay=inverse_sqrt"),
        (["optim.decay=cosine", "optim.decay_from_images=120"], 1, "is not before the run's end, at 120 images"),
        (["ema.stds=[0.3]"], 1, "ema.stds holds 0.3"),
        (["ema.stds=[0.05,0.0500000001]"], 1, "two of them have one name"),
        (["checkpoint.export=[std_0.1]"], 1, "checkpoint.export names std_0.1"),
        (["checkpoint.best=loss"], 1, "give validation.shards"),
        (["checkpoint.mirror=/mnt/x"], 1, "checkpoint.mirror=/mnt/x: expected one of gs://"),
        (["watchdog.step_s=0"], 1, "watchdog.step_s=0"),
        (["watchdog.save_s=1800"], 1, "watchdog.save_s=1800.0: expected less than engine.timeout_s=1800.0"),
        (["engine.timeout_s=.inf"], 1, "expected less than engine.timeout_s=inf"),
    ],
)
def test_contradictions(tmp_path: Path, overrides: list[str], world: int, part: str) -> None:
    recipe = load.load_train(write(tmp_path, "a.yaml", RECIPE), overrides)
    with pytest.raises(ConfigError, match=part.replace(".", r"\.")):
        check_train(recipe, world)


def test_schedules_have_their_own_fewest_timesteps_and_continuous_time_none(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", RECIPE)
    cosine = ["diffusion.schedule=cosine", "diffusion.num_timesteps=2"]
    edm = [*LOG_SNR, "diffusion.prediction=edm", "objective.timesteps=log_normal"]
    for overrides in (cosine, ["diffusion.num_timesteps=21"], [*LOG_SNR, "diffusion.num_timesteps=1"], edm):
        check_train(load.load_train(path, overrides), 1)


def test_a_recipe_may_be_based_on_another_tasks(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", RECIPE)
    path = write(tmp_path, "b.yaml", "base: a.yaml\ntask: super_resolution\nmodel: {low_res_size: 16}\n")
    assert isinstance(load.load_train(path, []), SuperResolutionRecipe)
    assert isinstance(load.load_train(str(tmp_path / "a.yaml"), ["task=super_resolution"]), SuperResolutionRecipe)


def test_where_sigma_data_once_stood_is_read_in_what_was_saved_alone(tmp_path: Path) -> None:
    recipe = load.load_train(write(tmp_path, "a.yaml", RECIPE), ["diffusion.sigma_data=0.7"])
    saved = load.to_dict(recipe)
    saved["objective"]["sigma_data"] = saved["diffusion"].pop("sigma_data")
    before = json.dumps(saved)
    assert load.from_dict(saved, "step-1") == recipe
    assert json.dumps(saved) == before
    saved["objective"]["sigma_data"] = "wide"
    with pytest.raises(ConfigError, match=r"step-1: diffusion\.sigma_data"):
        load.from_dict(saved, "step-1")
    with pytest.raises(ConfigError, match=r"unknown key objective\.sigma_data"):
        load.load_train(str(tmp_path / "a.yaml"), ["objective.sigma_data=0.7"])


@pytest.mark.parametrize("name", ["demo/sample", "sample/adm", "sample/cfg", "sample/edm"])
def test_the_sampling_recipes_need_their_paths_alone(name: str) -> None:
    path = str(Path(__file__).parents[3] / f"configs/{name}.yaml")
    check_sample(load.load(SampleRecipe, path, ["model=m", "out=o"]))


def test_sampling_needs_only_the_paths_of_its_mode() -> None:
    path = str(Path(__file__).parents[3] / "configs/demo/sample.yaml")
    given = ["model=m", "out=o"]
    check_sample(load.load(SampleRecipe, path, [*given, "guidance.mode=cfg"]))
    with pytest.raises(ConfigError, match=r"guidance\.classifier is not given"):
        check_sample(load.load(SampleRecipe, path, [*given, "guidance.mode=both"]))
    with pytest.raises(ConfigError, match="shard_size=100 is not a multiple"):
        check_sample(load.load(SampleRecipe, path, [*given, "shard_size=100", "batch_size=30"]))


def test_resolution_fills_the_model_from_data_and_process(tmp_path: Path) -> None:
    recipe = load.load_train(write(tmp_path, "a.yaml", RECIPE), ["data.image_size=16", "objective.p_uncond=0.1"])
    model = resolve(recipe, num_classes=7).model
    assert (model.image_size, model.num_classes, model.out_channels, model.null_label) == (16, 7, 6, True)
    with pytest.raises(ConfigError, match=r"model\.out_channels=5"):
        resolve(load.load_train(str(tmp_path / "a.yaml"), ["model.out_channels=5"]), num_classes=7)
    with pytest.raises(ConfigError, match="the manifest lists 7 classes"):
        resolve(load.load_train(str(tmp_path / "a.yaml"), ["model.num_classes=8"]), num_classes=7)


def test_protected_keys_refuse_and_others_do_not(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", RECIPE)
    before = load.load_train(path, [])
    harmless = changes(before, load.load_train(path, ["optim.lr=0.5", "engine.zero_stage=3", "run_dir=elsewhere"]))
    assert [change.key for change in harmless] == ["run_dir", "optim.lr", "engine.zero_stage"]
    refuse_protected(harmless, "step-1", allow=False)
    wider = changes(before, load.load_train(path, ["model.channels=64", "allow_config_change=true"]))
    assert [change.key for change in wider] == ["model.channels"]
    with pytest.raises(CheckpointError, match=r"model\.channels: 128 -> 64.*allow_config_change=true"):
        refuse_protected(wider, "step-1", allow=False)
    refuse_protected(wider, "step-1", allow=True)


def test_keys_of_earlier_versions_are_read(tmp_path: Path) -> None:
    content = load.to_dict(load.load_train(write(tmp_path, "a.yaml", RECIPE), []))
    optim = {key: value for key, value in content["optim"].items() if key != "decay"}
    objective = {**content["objective"], "sigma_data": 0.25}
    old = {**content, "optim": {**optim, "anneal": True}, "objective": objective}
    recipe = load.from_dict(old, "export")
    assert isinstance(recipe, DiffusionRecipe)
    assert recipe.optim.decay == "linear" and recipe.diffusion.sigma_data == 0.25
    assert load.from_dict({**content, "optim": {**optim, "anneal": False}}, "export").optim.decay == "none"


def test_a_foreign_recipe_cannot_read_our_environment(tmp_path: Path) -> None:
    content = load.to_dict(load.load_train(write(tmp_path, "a.yaml", RECIPE), []))
    with pytest.raises(ConfigError, match="interpolation"):
        load.from_dict({**content, "run_dir": "${oc.env:HOME}"}, "export")
