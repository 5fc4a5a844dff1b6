import json
import resource

from dist_diffusion.observe.metrics import MetricsFile, rewind


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path, steps):
    metrics = MetricsFile(str(path), print)
    for step in steps:
        metrics.append({"step": step, "loss": 1 / step, "batch_digest": 2**64 - step})
    metrics.close()


def test_a_row_is_in_the_file_as_soon_as_it_is_appended(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    metrics = MetricsFile(str(path), print)
    metrics.append({"step": 1, "batch_digest": 2**64 - 1})
    assert rows(path) == [{"step": 1, "batch_digest": 2**64 - 1}]
    metrics.close()


def test_rewind_moves_later_rows_and_the_file_goes_on(tmp_path):
    path, stale = tmp_path / "metrics.jsonl", tmp_path / "metrics.stale.jsonl"
    write(path, range(1, 6))
    assert rewind(str(path), str(stale), 3) == 2
    write(path, [4])
    assert [row["step"] for row in rows(path)] == [1, 2, 3, 4]
    assert [row["step"] for row in rows(stale)] == [4, 5]
    assert rewind(str(path), str(stale), 0) == 4
    assert rows(path) == []
    assert [row["step"] for row in rows(stale)] == [4, 5, 1, 2, 3, 4]


def test_nothing_to_rewind(tmp_path):
    path, stale = tmp_path / "metrics.jsonl", tmp_path / "metrics.stale.jsonl"
    assert rewind(str(path), str(stale), 0) == 0
    write(path, [1, 2])
    before = path.read_bytes()
    assert rewind(str(path), str(stale), 2) == 0
    assert path.read_bytes() == before and not stale.exists()


def test_torn_lines_do_not_stop_a_resume(tmp_path):
    path, stale = tmp_path / "metrics.jsonl", tmp_path / "metrics.stale.jsonl"
    write(path, [1, 2])
    whole = path.read_bytes()
    # Cut inside the row, after a whole object without its newline, and blocks of zeros as after a power cut.
    for torn in (b'{"step": 2, "lo', b'{"step": 2}', b"17", bytes(100)):
        path.write_bytes(whole + torn)
        stale.unlink(missing_ok=True)
        assert rewind(str(path), str(stale), 2) == 1
        assert path.read_bytes() == whole
        assert stale.read_bytes() == torn + b"\n"


def test_on_a_full_disk_rows_wait_and_no_line_is_torn(tmp_path):
    """A limit on the size of files takes the place of the disk's: part of a row would still fit."""
    path, said = tmp_path / "metrics.jsonl", []
    metrics = MetricsFile(str(path), said.append)
    metrics.append({"step": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, before[1]))
    try:
        metrics.append({"step": 2})
        metrics.append({"step": 3})
        assert rows(path) == [{"step": 1}] and len(said) == 1 and "wait in memory" in said[0]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    metrics.append({"step": 4})
    assert rows(path) == [{"step": step} for step in (1, 2, 3, 4)]
    for _ in range(2):
        metrics.close()
    assert len(said) == 1
