import os
import signal
import subprocess
import sys

import pytest

from dist_diffusion.distributed.signals import STOP_SIGNALS, StopFlag


@pytest.fixture
def flag():
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    flag = StopFlag()
    flag.install()
    yield flag
    for number, handler in before.items():
        signal.signal(number, handler)


def test_nothing_is_requested_without_a_signal(flag):
    assert not flag.requested and flag.name is None


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_a_signal_sets_the_flag_and_nothing_else(flag, number):
    os.kill(os.getpid(), number)
    assert flag.requested and flag.name == number.name


def test_the_first_signal_is_named(flag):
    os.kill(os.getpid(), signal.SIGUSR2)
    os.kill(os.getpid(), signal.SIGTERM)
    assert flag.name == "SIGUSR2"


def test_a_second_interrupt_interrupts_at_once(flag):
    os.kill(os.getpid(), signal.SIGINT)
    assert flag.name == "SIGINT"
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_a_process_that_is_told_to_stop_finishes_its_step():
    script = """
import time
from dist_diffusion.distributed.signals import StopFlag
flag = StopFlag()
flag.install()
print("ready", flush=True)
while not flag.requested:
    time.sleep(0.01)
print("saved after", flag.name)
raise SystemExit(75)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == "saved after SIGTERM\n"
    assert process.returncode == 75
