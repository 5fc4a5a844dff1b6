import numpy as np
import pytest
import torch
from torch import nn

from dist_diffusion.config.schema import ClassifierRecipe, DataOptions, DiffusionRecipe
from dist_diffusion.errors import ConfigError
from dist_diffusion.evaluation import judge as judges
from dist_diffusion.evaluation.images import open_images
from dist_diffusion.evaluation.judge import Judge
from dist_diffusion.models.build import build
from dist_diffusion.models.options import ClassifierOptions, UNetOptions
from dist_diffusion.weights import files as weight_files


class BrightestChannel(nn.Module):
    """The class is the colour; noise times other than 0 are a mistake."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(3))

    def forward(self, x: torch.Tensor, model_time: torch.Tensor) -> torch.Tensor:
        assert x.dtype == torch.float32 and -1 <= x.min() < -0.9 and 0.9 < x.max() <= 1
        assert model_time.shape == (len(x),) and not model_time.any()
        return x.mean((2, 3)) @ self.weight


@pytest.fixture
def judge() -> Judge:
    return Judge("runs/judge", BrightestChannel(), image_size=8, num_classes=3)


def _save(path, labels) -> str:
    images = np.zeros((10, 8, 8, 3), dtype=np.uint8)
    images[np.arange(10), ..., np.arange(10) % 3] = 255
    np.savez(path, images, *(() if labels is None else (labels,)))
    return str(path)


def test_label_agreement_is_the_share_of_labels_that_the_judge_sees(tmp_path, judge):
    labels = np.arange(10) % 3
    source = open_images(_save(tmp_path / "a.npz", labels))
    assert judges.judged(judge, source, batch_size=4)["label_agreement"] == 1
    labels[[0, 5, 9]] = 1, 0, 2
    source = open_images(_save(tmp_path / "b.npz", labels))
    assert judges.judged(judge, source, batch_size=4)["label_agreement"] == 0.7


def test_the_judges_score_is_that_of_its_logits(tmp_path, judge):
    """Three sure, evenly seen classes score 3; one class alone scores 1, however sure."""
    judge.module.weight.data *= 100
    source = open_images(_save(tmp_path / "a.npz", np.zeros(10, dtype=np.int64)))
    shares = np.array([4, 3, 3]) / 10
    expected = np.exp(-(shares * np.log(shares)).sum())
    assert judges.judged(judge, source, batch_size=4)["judge_score"] == pytest.approx(expected, rel=1e-6)
    np.savez(tmp_path / "b.npz", np.full((4, 8, 8, 3), (0, 255, 0), dtype=np.uint8), np.zeros(4, dtype=np.int64))
    alone = open_images(str(tmp_path / "b.npz"))
    assert judges.judged(judge, alone, batch_size=4)["judge_score"] == pytest.approx(1)


def test_samples_without_labels_are_refused(tmp_path, judge):
    with pytest.raises(ConfigError, match=r"judge=runs/judge needs labels, but samples=.*a\.npz has none"):
        judges.check(judge, open_images(_save(tmp_path / "a.npz", None)))


def test_labels_that_the_judge_does_not_know_are_refused(tmp_path, judge):
    with pytest.raises(ConfigError, match=r"labels 0 to 2, but samples=.* has labels from 0 to 9"):
        judges.check(judge, open_images(_save(tmp_path / "a.npz", np.arange(10))))


def test_samples_of_another_size_are_refused(judge, write_npz):
    with pytest.raises(ConfigError, match=r"of 8 px images, but samples=.* are 16 px"):
        judges.check(judge, open_images(write_npz("a.npz", 4, labels=np.zeros(4, dtype=np.int64))))


def test_a_judge_is_loaded_from_an_export(tmp_path, write_npz):
    options = ClassifierOptions(
        channels=32, num_res_blocks=1, channel_mult=(1, 2), attention_resolutions=(8,), image_size=16, num_classes=5
    )
    torch.manual_seed(0)
    module = build(options)
    path = str(tmp_path / "judge.safetensors")
    recipe = ClassifierRecipe(model=options, data=DataOptions(image_size=16))
    weight_files.save(path, module.state_dict(), recipe, {})
    judge = judges.load(path)
    assert (judge.image_size, judge.num_classes) == (16, 5)
    source = open_images(write_npz("a.npz", 12, labels=np.arange(12) % 5))
    with torch.inference_mode():
        images = torch.from_numpy(np.concatenate(list(source.batches(12)))).permute(0, 3, 1, 2)
        expected = module.eval()(images / 127.5 - 1, torch.zeros(12)).argmax(1).numpy()
    assert judges.judged(judge, source, 5)["label_agreement"] == (expected == source.labels).mean()


def test_a_diffusion_model_is_no_judge(tmp_path):
    options = UNetOptions(
        channels=32,
        num_res_blocks=1,
        channel_mult=(1,),
        attention_resolutions=(),
        image_size=8,
        out_channels=6,
        num_classes=0,
        null_label=False,
    )
    path = str(tmp_path / "model.safetensors")
    recipe = DiffusionRecipe(model=options, data=DataOptions(image_size=8))
    weight_files.save(path, build(options).state_dict(), recipe, {})
    with pytest.raises(ConfigError, match="a model of task diffusion, not a classifier"):
        judges.load(path)
