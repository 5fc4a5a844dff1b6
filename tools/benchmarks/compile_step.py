"""`-m benchmarks.compile_step REPORT SECONDS`: a small network's training step, compiled and as it is, in one process.

By itself, because to compile takes minutes and fills torch's caches, which are a new folder's here.
"""

import json
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.setting import our_training_step, process_group, random_weights, recipe_of
from benchmarks.timing import alternate
from dist_diffusion.models.options import UNetOptions

NETWORK = UNetOptions(
    channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(16,), num_head_channels=32
)
"""0.9 M parameters: what there is to compile is as in a large one, but fewer blocks."""


def main() -> None:
    """Writes what was measured."""
    report, seconds = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="bench-compile-") as cache, process_group() as group:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        recipe, state = recipe_of(NETWORK, "autocast"), random_weights(NETWORK)
        compiled = our_training_step(replace(recipe, engine=replace(recipe.engine, compile=True)), state, group)
        start = time.perf_counter()
        compiled()
        first = time.perf_counter() - start
        steps = alternate({"ours": compiled, "peer": our_training_step(recipe, state, group)}, float(seconds))
    Path(report).write_text(json.dumps({"first": first, "steps": steps}))


if __name__ == "__main__":
    main()
