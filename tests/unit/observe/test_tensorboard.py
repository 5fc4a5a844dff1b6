import errno
import threading

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.record_writer import RecordWriter

from dist_diffusion.observe import tensorboard
from dist_diffusion.observe.tensorboard import TensorBoard


def test_scalars_and_images_are_written_and_lost_steps_purged(tmp_path):
    first = TensorBoard(str(tmp_path), None, print)
    for step in (1, 2, 3):
        first.scalars({"loss": 1.0 * step}, step)
    first.image("preview", np.full((4, 6, 3), 200, np.uint8), 2)
    first.close()
    resumed = TensorBoard(str(tmp_path), 3, print)
    resumed.scalars({"loss": 30.0}, 3)
    resumed.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    (image,) = events.Images("preview")
    assert (image.step, image.height, image.width) == (2, 4, 6)


def test_a_full_disk_costs_events_and_not_the_run(tmp_path, monkeypatch):
    """Told once; with room again, later events are in a new file."""
    said = []
    written = TensorBoard(str(tmp_path), None, said.append)
    written.scalars({"loss": 1.0}, 1)
    written.image("preview", np.zeros((4, 6, 3), np.uint8), 1)
    write = RecordWriter.write

    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RecordWriter, "write", full)
    monkeypatch.setattr(threading, "excepthook", lambda args: None)  # the writer's own thread ends by it
    for step in range(2, 5):
        written.image("preview", np.zeros((4, 6, 3), np.uint8), step)
    assert len(said) == 1 and "No space left on device" in said[0]
    monkeypatch.setattr(RecordWriter, "write", write)
    written.scalars({"loss": 5.0}, 5)
    monkeypatch.setattr(tensorboard, "RETRY_S", 0.0)
    monkeypatch.setattr(written, "_retry_at", 0.0)
    written.scalars({"loss": 6.0}, 6)
    written.close()
    assert len(said) == 1 and len(list(tmp_path.iterdir())) == 2
    assert [event.step for event in EventAccumulator(str(tmp_path)).Reload().Scalars("loss")] == [1, 6]
