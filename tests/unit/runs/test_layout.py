import os

from dist_diffusion.runs.layout import RunDir


def test_everything_lies_below_the_run_directory_under_its_own_name():
    run = RunDir("/runs/a")
    paths = [
        *(run.config, run.environment, run.metrics, run.stale_metrics, run.verdict, run.lease),
        *(run.checkpoints, run.tensorboard, run.log(0), run.log(1)),
    ]
    assert len(set(paths)) == len(paths)
    assert all(path.startswith("/runs/a/") for path in paths)
    assert os.path.basename(run.verdict) == "exit.json"
    assert os.path.basename(run.metrics) == "metrics.jsonl"
    assert run.log(3) == "/runs/a/logs/rank-3.log"
