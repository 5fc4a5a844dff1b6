"""The typed recipes. Torch-free: a wrong key is found before anything heavy is imported."""

from dataclasses import dataclass, field
from typing import Any, Literal

from dist_diffusion.diffusion.options import (
    DiffusionOptions,
    GuidanceMode,
    GuidanceOptions,
    ObjectiveOptions,
    SamplerOptions,
)
from dist_diffusion.models.options import ClassifierOptions, SuperResolutionOptions, UNetOptions


@dataclass(frozen=True)
class DataOptions:
    """What is read and in which order."""

    shards: str | None = None
    """A shard folder or its manifest.json."""
    image_size: int = 64
    random_flip: bool = True
    random_crop: bool = False
    canonical_streams: int | None = None
    """C of the data order; None is the largest divisor of train.global_batch up to 256."""
    shuffle_block: int = 1024
    workers: int | None = None
    """Decode processes of a rank; 0 decodes in the loader's thread. None: its share of the cores, at most 8, beside a
    GPU; 0 where the CPU trains."""
    undecodable: Literal["replace", "fail"] = "replace"
    """What happens to samples that cannot be decoded: a neighbour stands for them, said aloud, or the run ends."""
    max_replaced_share: float = 0.001
    """Of the images seen, and of the first epoch from the start, how many may be replaced before the run ends."""
    max_replaced_in_a_row: int = 100
    """How many of a rank's samples in a row."""
    latents: bool = False
    """The shards hold latents, which are read as they are; data.image_size is then theirs."""
    latent_scale: float = 1.0
    """What latents are multiplied by, to be of about unit variance."""


@dataclass(frozen=True)
class TrainOptions:
    """How long and how much at a time. Steps are optimizer steps."""

    steps: int = 100_000
    global_batch: int = 256
    micro_batch: int | None = None
    """Samples of one forward pass on one rank; None is the rank's whole share."""
    log_every: int = 100
    dry_run: bool = True
    """Before step 0: a step, a preview's batch and a checkpoint, all undone, to find out whether they fit."""


@dataclass(frozen=True)
class OptimOptions:
    """The optimizer and its learning-rate schedule, in images seen."""

    name: Literal["adamw", "adam", "nadamw"] = "adamw"
    """How weight_decay acts: on the weights themselves (adamw), or through the gradients (adam). nadamw is adamw with
    Nesterov's momentum."""
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 0.0
    """Largest gradient norm; 0 does not clip."""
    warmup_images: int = 0
    """Over which the rate rises linearly."""
    decay: Literal["none", "linear", "cosine", "inverse_sqrt"] = "none"
    """linear and cosine reach zero at train.steps; inverse_sqrt is lr / sqrt(images / decay_from_images)."""
    decay_from_images: int = 0
    """Where the decay begins."""


@dataclass(frozen=True)
class EmaOptions:
    """Moving averages of the weights, kept in fp32 where the weights' masters are."""

    decays: tuple[float, ...] = ()
    """Exponential ones, named ema_0, ema_1, ... in this order."""
    stds: tuple[float, ...] = ()
    """Power-function profiles by their relative width (arXiv 2312.02696), named std_0.05, ...; of two of them any other
    width can be made afterwards: `export RUN ema.std=0.07`."""
    snapshot_every_commits: int = 1
    """Every so many commits leave the profiles in RUN/averages, from which other widths are made."""


@dataclass(frozen=True)
class EngineOptions:
    """How the state is sharded and in which precision it is computed."""

    zero_stage: int = 1
    precision: Literal["fp32", "bf16", "autocast", "fp16"] = "fp32"
    loss_scale: int = 65536
    """Of fp16, at the start: a power of 2. Halved at each overflow, doubled after loss_scale_window steps without."""
    loss_scale_floor: int = 1
    """Overflows at this scale are non-finite steps."""
    loss_scale_window: int = 1000
    offload_optimizer: bool = False
    """Keep masters, moments and averages in host memory, and update them there: less GPU memory, slower."""
    recompute: bool = False
    """Keep only the blocks' inputs for the backward pass and compute the rest again: less memory, more time."""
    compile: bool = False
    """torch.compile of each block: faster steps after a slow first one."""
    deterministic: bool = False
    """Deterministic kernels on GPUs (slower): needed there for a bitwise resume."""
    max_nonfinite_steps: int = 10
    """Consecutive non-finite steps after which the run ends."""
    drift_check_every: int = 1000
    """Steps between comparisons of the ranks' replicas of the weights; 0 never."""
    peak_tflops: float | None = None
    """Of one rank's device at this precision, for the column mfu; None: known GPUs have theirs, others none."""
    timeout_s: float = 1800.0
    """How long a collective may take before a peer counts as lost."""


@dataclass(frozen=True)
class DeepSpeedOptions:
    """Keys merged into the derived DeepSpeed configuration last."""

    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CheckpointOptions:
    """When to commit, what to keep."""

    every: int = 10_000
    keep: int = 2
    """Newest commits kept; 0 keeps all."""
    keep_every: int | None = None
    """Commits of steps that this divides are kept for ever."""
    best: str | None = None
    """A column of validation.jsonl, as loss or accuracy: the commit that is best by it is kept, too."""
    best_is: Literal["lowest", "highest"] = "lowest"
    mirror: str | None = None
    """gs://, az:// or s3:// folder that holds a copy of the run; an empty run_dir is restored from it."""
    export: tuple[str, ...] = ()
    """Averages exported with each commit (ema_0, ..., or weights); empty is the first EMA, else the weights."""


@dataclass(frozen=True)
class WatchdogOptions:
    """Seconds without progress after which a rank says where it hangs and ends, by what it is at.

    All below engine.timeout_s, at which a collective gives up without naming anybody.
    """

    start_s: float = 1500.0
    """From the lease to the first step: reading and verifying a commit, the dry run."""
    first_step_s: float = 1500.0
    """With it come the first shards, and what is compiled."""
    step_s: float = 600.0
    save_s: float = 1500.0
    """While training waits for a commit."""
    preview_s: float = 1500.0
    """Also a validation."""


@dataclass(frozen=True)
class ValidationOptions:
    """The losses on held-out samples after a commit, from that commit's export."""

    shards: str | None = None
    """A shard folder or its manifest.json, of data.shards' classes; None validates nothing."""
    num_samples: int | None = 1024
    """Samples used, from the first row of the index on; None is all."""
    every_commits: int = 1
    batch_size: int = 64


@dataclass(frozen=True)
class PreviewOptions:
    """A sample grid after a commit, from that commit's export."""

    num_images: int = 0
    every_commits: int = 1
    sampler: SamplerOptions = field(default_factory=lambda: SamplerOptions(name="ddim", steps="20"))
    cfg_scale: float = 1.0


@dataclass(frozen=True)
class DiffusionRecipe:
    """`task: diffusion`."""

    task: Literal["diffusion", "super_resolution"] = "diffusion"
    run_dir: str | None = None
    init_from: str | None = None
    """Run or export whose weights a new run starts from; classes may differ, a null label may be added."""
    allow_config_change: bool = False
    """Go on from a commit whose protected keys differ; they are named."""
    seed: int = 0
    threads: int | None = None
    """CPU threads of a rank; None is OMP_NUM_THREADS, else cores over ranks of the host."""
    data: DataOptions = field(default_factory=DataOptions)
    diffusion: DiffusionOptions = field(default_factory=DiffusionOptions)
    model: UNetOptions = field(default_factory=UNetOptions)
    objective: ObjectiveOptions = field(default_factory=ObjectiveOptions)
    optim: OptimOptions = field(default_factory=OptimOptions)
    train: TrainOptions = field(default_factory=TrainOptions)
    ema: EmaOptions = field(default_factory=lambda: EmaOptions(decays=(0.9999,)))
    engine: EngineOptions = field(default_factory=EngineOptions)
    deepspeed: DeepSpeedOptions = field(default_factory=DeepSpeedOptions)
    checkpoint: CheckpointOptions = field(default_factory=CheckpointOptions)
    watchdog: WatchdogOptions = field(default_factory=WatchdogOptions)
    validation: ValidationOptions = field(default_factory=ValidationOptions)
    preview: PreviewOptions = field(default_factory=PreviewOptions)


@dataclass(frozen=True)
class SuperResolutionRecipe(DiffusionRecipe):
    """`task: super_resolution`: a diffusion model given the image at model.low_res_size as well."""

    task: Literal["super_resolution"] = "super_resolution"
    model: SuperResolutionOptions = field(default_factory=SuperResolutionOptions)


@dataclass(frozen=True)
class ClassifierRecipe:
    """`task: classifier`."""

    task: Literal["classifier"] = "classifier"
    run_dir: str | None = None
    init_from: str | None = None
    allow_config_change: bool = False
    seed: int = 0
    threads: int | None = None
    data: DataOptions = field(default_factory=lambda: DataOptions(random_crop=True))
    diffusion: DiffusionOptions = field(default_factory=DiffusionOptions)
    model: ClassifierOptions = field(default_factory=ClassifierOptions)
    optim: OptimOptions = field(default_factory=OptimOptions)
    train: TrainOptions = field(default_factory=TrainOptions)
    ema: EmaOptions = field(default_factory=EmaOptions)
    engine: EngineOptions = field(default_factory=EngineOptions)
    deepspeed: DeepSpeedOptions = field(default_factory=DeepSpeedOptions)
    checkpoint: CheckpointOptions = field(default_factory=CheckpointOptions)
    watchdog: WatchdogOptions = field(default_factory=WatchdogOptions)
    validation: ValidationOptions = field(default_factory=ValidationOptions)


TrainRecipe = DiffusionRecipe | ClassifierRecipe


@dataclass(frozen=True)
class SampleRecipe:
    """`dist-diffusion sample`."""

    model: str | None = None
    """A run, RUN@STEP, or an export."""
    out: str | None = None
    num_samples: int = 50_000
    batch_size: int = 64
    shard_size: int = 1024
    """Images of an output shard: whole batches."""
    low_res: str | None = None
    """npz or sample job that a super-resolution model starts from: image i and its label make sample i."""
    seed: int = 0
    threads: int | None = None
    ema: str | None = None
    """Which export of a run's commit; None is the first."""
    sampler: SamplerOptions = field(default_factory=SamplerOptions)
    guidance: GuidanceOptions = field(default_factory=GuidanceOptions)


@dataclass(frozen=True)
class EvaluateRecipe:
    """`dist-diffusion evaluate`."""

    samples: str | None = None
    """npz, sample job, shard folder or saved statistics."""
    reference: str | None = None
    """npz, sample job, shard folder or saved statistics."""
    out: str | None = None
    judge: str | None = None
    """Run or export of a classifier: adds label_agreement and judge_score."""
    image_size: int | None = None
    """Size at which shards are read before they enter the network; None is the samples' size."""
    num_reference: int | None = None
    """Reference images used of a shard folder; None is all."""
    batch_size: int = 64
    seed: int = 0
    threads: int | None = None


@dataclass(frozen=True)
class SweepRecipe:
    """`dist-diffusion sweep`: sampling jobs that differ in their guidance alone, all evaluated alike."""

    model: str | None = None
    """A run, RUN@STEP, or an export."""
    out: str | None = None
    reference: str | None = None
    """npz, sample job, shard folder or saved statistics."""
    num_reference: int | None = None
    """Reference images used of a shard folder; None is all."""
    judge: str | None = None
    """Run or export of a classifier: adds label_agreement and judge_score."""
    modes: tuple[GuidanceMode, ...] = ("none", "cfg", "classifier", "both")
    """Which of them; the scales of the others are not used."""
    cfg_scales: tuple[float, ...] = ()
    """Of mode cfg."""
    classifier_scales: tuple[float, ...] = ()
    """Of mode classifier."""
    both: tuple[tuple[float, float], ...] = ()
    """Of mode both: pairs [cfg_scale, classifier_scale]."""
    grid_images: int = 10
    """Images of each point that the report shows, from the first."""
    num_samples: int = 50_000
    """Of each point; from here on as in `sample`."""
    batch_size: int = 64
    """Of sampling and of evaluation."""
    shard_size: int = 1024
    low_res: str | None = None
    seed: int = 0
    threads: int | None = None
    ema: str | None = None
    sampler: SamplerOptions = field(default_factory=SamplerOptions)
    guidance: GuidanceOptions = field(default_factory=GuidanceOptions)
    """All but mode, cfg_scale and classifier_scale, which the points have."""


@dataclass(frozen=True)
class NllDataOptions:
    """What is measured; read at the model's image size, without flips."""

    shards: str | None = None
    """A shard folder or its manifest.json."""


@dataclass(frozen=True)
class NllRecipe:
    """`dist-diffusion nll`: bits per dimension of a dataset under a diffusion model."""

    model: str | None = None
    """A run, RUN@STEP, or an export."""
    ema: str | None = None
    """Which export of a run's commit; None is the first."""
    out: str | None = None
    data: NllDataOptions = field(default_factory=NllDataOptions)
    num_samples: int | None = None
    """Images used, from the first row of the index on; None is all."""
    steps: str = "1000"
    """A respacing, as sampler.steps."""
    clip_x0: bool = True
    batch_size: int = 64
    seed: int = 0
    threads: int | None = None


@dataclass(frozen=True)
class WhichAverage:
    """One that the commit has, or one that is made; neither is the commit's first."""

    name: str | None = None
    """Of the commit's exports; `ema=NAME` for short."""
    std: float | None = None
    """Relative width of a power-function profile, made from the run's snapshots."""


@dataclass(frozen=True)
class ExportOptions:
    """`dist-diffusion export RUN`."""

    out: str | None = None
    ema: WhichAverage = field(default_factory=WhichAverage)
