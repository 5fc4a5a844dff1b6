"""Dying with the launcher: ranks can outlive a killed mpirun or torchrun and would hold their devices for ever."""

import ctypes
import os
import signal
import sys

from dist_diffusion.errors import LaunchError

_PR_SET_PDEATHSIG = 1


def die_with_parent(expected_parent: int | None = None) -> None:
    """Asks the kernel to kill this process when its parent ends; kills it now if the parent is gone already.

    `expected_parent` is the parent's process id, told by the parent itself; without it, only a parent that ends
    during this call is noticed. Linux only, nothing elsewhere.
    """
    if sys.platform != "linux":
        return
    parent = os.getppid() if expected_parent is None else expected_parent
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise LaunchError(f"the kernel refused PR_SET_PDEATHSIG: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
