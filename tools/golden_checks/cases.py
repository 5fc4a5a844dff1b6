"""All cases of a folder: which check covers which file."""

from collections.abc import Callable, Iterator

from dist_diffusion.errors import DataError
from golden_checks.folder import Archive, Folder
from golden_checks.metrics import check_metrics
from golden_checks.networks import check_state_dict, check_values
from golden_checks.report import MissingError, Row, not_run
from golden_checks.schedules import check_schedules
from golden_checks.stand_in import check_bits, check_losses, check_samplers

Check = Callable[[Folder, Archive], Iterator[Row]]
CHECKS: dict[str, Check] = {
    "schedules": check_schedules,
    "losses": check_losses,
    "samplers": check_samplers,
    "nll": check_bits,
    "metrics": check_metrics,
}
JSONS = ("meta", "metrics")


def run(folder: Folder) -> Iterator[Row]:
    """Runs every case; what no case covers has a row too."""
    for name in folder.others:
        yield not_run(name, "no check reads it: values are in npz files of the folder itself")
    for stem in folder.jsons:
        if stem not in JSONS:
            yield not_run(f"{stem}.json", "no check reads it")
    if "metrics" in folder.jsons and "metrics" not in folder.stems:
        yield not_run("metrics.json", "metrics.npz is not in the folder")
    for name, network in folder.networks.items():
        yield check_state_dict(name, network)
    for stem in folder.stems:
        yield from check_file(folder, stem)


def check_file(folder: Folder, stem: str) -> Iterator[Row]:
    """The cases of one npz, and a row for each array that they did not read."""
    check = CHECKS.get(stem, check_values if stem in folder.networks else None)
    if check is None:
        yield not_run(f"{stem}.npz", "meta.json describes no such network")
        return
    try:
        archive = folder.archive(stem)
        yield from check(folder, archive)
    except (DataError, MissingError) as reason:
        yield not_run(f"{stem}.npz", str(reason))
        return
    for name in archive.unread():
        yield not_run(f"{stem} {name}", "no case reads it")
