import math

import pytest

from dist_diffusion.observe.throughput import Throughput, human


def test_rate_and_time_left_of_a_resumed_run():
    throughput = Throughput(total_images=1000, start_images=400)
    assert throughput.images_per_s == 0 and math.isinf(throughput.eta_s)
    throughput.update(400, now=50.0)
    assert math.isinf(throughput.eta_s)
    throughput.update(500, now=60.0)
    assert throughput.images_per_s == 10
    assert throughput.eta_s == 50


def test_the_rate_follows_a_change_of_speed():
    throughput = Throughput(total_images=10**6, start_images=0)
    for second in range(100):
        throughput.update(second, now=float(second))
    for second in range(100):
        throughput.update(100 + 5 * second, now=100.0 + second)
    assert throughput.images_per_s == pytest.approx(5)


def test_two_updates_at_one_instant():
    throughput = Throughput(total_images=10, start_images=0)
    throughput.update(1, now=1.0)
    throughput.update(2, now=1.0)
    assert throughput.images_per_s == 0 and math.isinf(throughput.eta_s)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0, "0s"), (45.4, "45s"), (59.6, "1m 00s"), (200, "3m 20s"), (3600, "1h 00m"), (3725, "1h 02m")),
        *((86399, "23h 59m"), (2 * 86400 + 3 * 3600 + 59, "2d 03h"), (math.inf, "unknown")),
    ],
)
def test_human(seconds, text):
    assert human(seconds) == text
