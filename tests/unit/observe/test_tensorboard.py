import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dist_diffusion.observe.tensorboard import TensorBoard


def test_scalars_and_images_are_written_and_lost_steps_purged(tmp_path):
    first = TensorBoard(str(tmp_path), purge_step=None)
    for step in (1, 2, 3):
        first.scalars({"loss": 1.0 * step}, step)
    first.image("preview", np.full((4, 6, 3), 200, np.uint8), 2)
    first.close()
    resumed = TensorBoard(str(tmp_path), purge_step=3)
    resumed.scalars({"loss": 30.0}, 3)
    resumed.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    (image,) = events.Images("preview")
    assert (image.step, image.height, image.width) == (2, 4, 6)
