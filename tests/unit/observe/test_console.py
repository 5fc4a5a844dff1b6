import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

from dist_diffusion.observe.console import Console


def test_rank_0_speaks_and_every_rank_logs(tmp_path, capsys):
    for rank in (0, 1):
        console = Console(str(tmp_path / "logs" / f"rank-{rank}.log"), rank)
        console.say(f"hello from {rank}")
        console.close()
    assert capsys.readouterr().out == "hello from 0\n"
    for rank in (0, 1):
        text = (tmp_path / "logs" / f"rank-{rank}.log").read_text()
        assert re.fullmatch(rf"\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\dZ rank {rank}: hello from {rank}\n", text)


def test_who_says_nothing_leaves_nothing(tmp_path):
    console = Console(str(tmp_path / "logs" / "rank-0.log"), 0)
    console.close()
    assert not any(tmp_path.iterdir())


def test_a_line_is_in_the_log_before_the_process_dies_and_is_appended(tmp_path):
    path = tmp_path / "rank-0.log"
    for text in ("first", "second"):
        Console(str(path), 0).say(text)
    assert [line.split(": ")[1] for line in path.read_text().splitlines()] == ["first", "second"]


def test_a_name_that_is_no_text_is_shown_escaped(tmp_path, capsys):
    name = os.fsdecode(b"\xff.png")
    console = Console(str(tmp_path / "rank-0.log"), 0)
    console.say(name)
    console.close()
    assert capsys.readouterr().out == "\\udcff.png\n"
    assert (tmp_path / "rank-0.log").read_text().endswith(r": \udcff.png" + "\n")


def test_errors_go_to_stderr_from_any_rank(tmp_path, capsys):
    Console(None, 3).error("broken")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "broken\n")


SHOW = """
from dist_diffusion.observe.console import Console
import sys
console = Console(None, int(sys.argv[1]))
with console.progress(total=10, start=4) as progress:
    progress.update(5, "loss 0.5")
    console.say("a line")
    progress.update(10)
"""


def show(rank, on_terminal):
    """What a process writes to stderr and stdout with stderr on a terminal or not."""
    terminal, stderr = pty.openpty() if on_terminal else os.pipe()
    if on_terminal:
        fcntl.ioctl(stderr, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    result = subprocess.run([sys.executable, "-c", SHOW, str(rank)], stdout=subprocess.PIPE, stderr=stderr)
    os.close(stderr)
    shown = b""
    try:
        while chunk := os.read(terminal, 65536):
            shown += chunk
    except OSError:
        # Linux ends a terminal without writers by EIO.
        pass
    os.close(terminal)
    assert result.returncode == 0
    return shown.decode(), result.stdout.decode()


def test_a_bar_shows_on_a_terminal_only_and_only_for_rank_0():
    shown, said = show(rank=0, on_terminal=True)
    assert "10/10" in shown and said == "a line\n"
    assert show(rank=0, on_terminal=False) == ("", "a line\n")
    assert show(rank=1, on_terminal=True) == ("", "")
