import os
import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help exists on Linux only")

# The parent starts a child that outlives it unless asked otherwise, and waits to be killed.
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE, text=True)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""
CHILD = """
import time
from dist_diffusion.distributed.parent import die_with_parent
{call}
print("ready", flush=True)
time.sleep(60)
"""


def child_of_a_killed_parent(call):
    command = [sys.executable, "-c", PARENT, CHILD.format(call=call)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
    return child


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stream:
            return stream.read().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_rank_ends_with_its_killed_launcher():
    child = child_of_a_killed_parent("die_with_parent()")
    end = time.monotonic() + 20
    while is_alive(child) and time.monotonic() < end:
        time.sleep(0.01)
    assert not is_alive(child)


def test_without_it_the_rank_lives_on():
    child = child_of_a_killed_parent("")
    time.sleep(0.3)
    assert is_alive(child)
    os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("gone", [True, False])
def test_a_parent_that_was_gone_before_is_noticed(gone):
    # No process has id 0: as if the parent that said its id had ended and another had adopted this process.
    expected = 0 if gone else os.getpid()
    script = f"from dist_diffusion.distributed.parent import die_with_parent; die_with_parent({expected})"
    assert subprocess.run([sys.executable, "-c", script]).returncode == (-signal.SIGKILL if gone else 0)
