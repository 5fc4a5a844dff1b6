"""`dist-diffusion` with a fault in it: faulty.py MOMENT RANK N COMMAND ...

On rank RANK, something happens at the N-th time that the process comes to a moment (see `is_one_of`). Product code
knows nothing of this: a function of it is replaced before the command starts.
"""

import errno
import functools
import importlib
import itertools
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from dist_diffusion.cli.main import main
from dist_diffusion.distributed.environment import resolve
from dist_diffusion.models.unet import UNet

SLOW_S = 3.0

Wrap = Callable[[Callable[..., Any], Callable[[], bool]], Callable[..., Any]]
"""Makes the replacement of a function, given it and whether the time has come."""


@dataclass(frozen=True)
class Fault:
    """`target` is MODULE:NAME.NAME, as its users look it up."""

    target: str
    wrap: Wrap


def kill() -> None:
    """kill -9 of this process; the test measures from here on how long the others take."""
    os.write(2, f"killed at {time.time()}\n".encode())
    os.kill(os.getpid(), signal.SIGKILL)


def hang() -> None:
    while True:
        time.sleep(1)


def full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def slow() -> None:
    time.sleep(SLOW_S)


def before(act: Callable[[], None]) -> Wrap:
    def wrap(function: Callable[..., Any], is_time: Callable[[], bool]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if is_time():
                act()
            return function(*args, **kwargs)

        return call

    return wrap


def after(act: Callable[[], None]) -> Wrap:
    def wrap(function: Callable[..., Any], is_time: Callable[[], bool]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            if is_time():
                act()
            return result

        return call

    return wrap


def in_the_middle_of_a_file(act: Callable[[], None]) -> Wrap:
    """Of a function whose second argument is the path that it writes: half of it is there then."""

    def wrap(function: Callable[..., Any], is_time: Callable[[], bool]) -> Callable[..., Any]:
        def call(content: Any, path: str, *args: Any, **kwargs: Any) -> Any:
            result = function(content, path, *args, **kwargs)
            if is_time():
                os.truncate(path, os.path.getsize(path) // 2)
                act()
            return result

        return call

    return wrap


def with_forward(make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Wrap:
    """Of the loop's step: its forward passes are other ones, made of the network's own."""

    def wrap(function: Callable[..., Any], is_time: Callable[[], bool]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            forward = UNet.forward
            if is_time():
                UNet.forward = make(forward)  # type: ignore[method-assign]
            try:
                return function(*args, **kwargs)
            finally:
                UNet.forward = forward  # type: ignore[method-assign]

        return call

    return wrap


def killed_in_backward(forward: Callable[..., Any]) -> Callable[..., Any]:
    """When half of the gradients are made, and some perhaps on their way to the other ranks."""

    def at_the_gradient(module: torch.nn.Module, given: Any, out: torch.Tensor) -> None:
        out.register_hook(lambda gradient: kill())

    def call(network: UNet, *args: Any) -> Any:
        network.middle_block.register_forward_hook(at_the_gradient)
        return forward(network, *args)

    return call


def hanging(forward: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args: hang()


def not_finite(forward: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args: forward(*args) * float("nan")


STEP = "dist_diffusion.training.loop:train_step"
SNAPSHOT = "dist_diffusion.engine.slices:snapshot"
WRITE = "dist_diffusion.engine.slices:save_file"
SHARE = "dist_diffusion.engine.checkpoint:write_share"
EXPORT = "dist_diffusion.weights.files:save"
MARK = "dist_diffusion.storage.committed:mark"
PRUNE = "dist_diffusion.storage.committed:prune"


def kill_at_a_removal() -> None:
    """What is removed has no marker any more, and all its files."""
    shutil.rmtree = lambda path: kill()  # type: ignore[assignment]


MOMENTS = {
    "kill-in-backward": Fault(STEP, with_forward(killed_in_backward)),
    "kill-before-snapshot": Fault(SNAPSHOT, before(kill)),
    "kill-in-slices": Fault(WRITE, in_the_middle_of_a_file(kill)),
    "kill-after-share": Fault(SHARE, after(kill)),
    "kill-before-exports": Fault(EXPORT, before(kill)),
    "kill-after-marker": Fault(MARK, after(kill)),
    "kill-in-prune": Fault(PRUNE, before(kill_at_a_removal)),
    "slow-slices": Fault(WRITE, before(slow)),
    "full-slices": Fault(WRITE, in_the_middle_of_a_file(full)),
    "nan": Fault(STEP, with_forward(not_finite)),
    "hang": Fault(STEP, with_forward(hanging)),
}


def is_one_of(calls: str) -> Callable[[], bool]:
    """Counts its own calls: "3" is the third, "3+" that and all later ones, "3,6+" the third and all from the sixth."""
    count = itertools.count(1)

    def is_time() -> bool:
        now = next(count)
        return any(now >= int(part[:-1]) if part.endswith("+") else now == int(part) for part in calls.split(","))

    return is_time


def install(moment: str, calls: str) -> None:
    fault = MOMENTS[moment]
    module, path = fault.target.split(":")
    *owners, name = path.split(".")
    owner = functools.reduce(getattr, owners, importlib.import_module(module))
    setattr(owner, name, fault.wrap(getattr(owner, name), is_one_of(calls)))


if __name__ == "__main__":
    _, wanted, rank, nth, *command = sys.argv
    if resolve(os.environ).rank == int(rank):
        install(wanted, nth)
    main(command)
