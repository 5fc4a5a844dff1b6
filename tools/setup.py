"""`make setup`: .venv with everything in it and the demo's dataset in runs/. A second run finds nothing to do.

Standard library only. As root on a system with apt, missing system packages are installed. Else MPI comes as a wheel
and the dataset as a download; what cannot be had without root ends with the apt line to run. pip's own settings hold.
`make servers` gets the servers that only tests need; without one of them it says which tests will be skipped.
"""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "setup-stamp"
MPICH = "mpich==5.0.2"
AZURITE = "azurite@3.35.0"
NODE_MODULES = VENV / "node"
SERVERS_STAMP = VENV / "servers-stamp"

DATASET = ROOT / "runs" / "fashion-mnist"
DATASET_OF_APT = Path("/usr/share/datasets/fashion-mnist")
DATASET_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
DATASET_SHA256 = {
    "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
}


class SetupError(Exception):
    """One message for the user."""


def main() -> None:
    """Bring the three parts up to date: system packages, .venv, the demo's dataset."""
    if sys.version_info < (3, 10):  # noqa: UP036 - an older interpreter runs this file too
        raise SetupError(f"this is Python {sys.version.split()[0]}, 3.10 is needed: make setup PYTHON=python3.12")
    install_system_packages()
    wheels = [] if system_mpirun() else [MPICH]
    wanted = fingerprint(wheels)
    if not STAMP.exists() or STAMP.read_text() != wanted:
        build_venv(wheels)
        STAMP.write_text(wanted)
    try:
        provide_dataset()
    except SetupError as error:
        say(f"no dataset for make demo, all else is ready: {error}")


def install_system_packages() -> None:
    """Install by apt what is missing, where this is root; a missing venv is an error elsewhere."""
    missing = {
        "python3-venv": importlib.util.find_spec("ensurepip") is None,
        "openmpi-bin": system_mpirun() is None,
        "dataset-fashion-mnist": not DATASET_OF_APT.is_dir() and not DATASET.is_dir(),
    }
    install_by_apt([package for package, is_missing in missing.items() if is_missing])
    importlib.invalidate_caches()
    if importlib.util.find_spec("ensurepip") is None:
        raise SetupError(
            f"{sys.executable} cannot make a virtual environment. As root: "
            "apt-get install python3-venv openmpi-bin dataset-fashion-mnist"
        )


def install_by_apt(packages: "list[str]") -> None:
    """Install where this is root on a system with apt; a failure is told and no more."""
    if not packages or os.geteuid() != 0 or not shutil.which("apt-get"):
        return
    say(f"installing by apt: {' '.join(packages)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        run(["apt-get", "update", "-q"], environment)
        run(["apt-get", "install", "-q", "-y", "--no-install-recommends", *packages], environment)
    except SetupError as error:
        say(f"{error}\nsetup: apt could not help; going on as without root")


def system_mpirun() -> "str | None":
    """The mpirun that is not the wheel's, if there is one."""
    folders = [f for f in os.environ.get("PATH", os.defpath).split(os.pathsep) if Path(f).resolve() != VENV / "bin"]
    return shutil.which("mpirun", path=os.pathsep.join(folders))


def fingerprint(wheels: "list[str]") -> str:
    """What .venv depends on: the interpreter, the place, what is asked for."""
    # Of an activated .venv the interpreter that it was made from, else it would be made anew under its own feet.
    interpreter = os.path.realpath(sys.executable)
    content = hashlib.sha256(repr((sys.version, interpreter, str(ROOT), wheels)).encode())
    for path in [Path(__file__), ROOT / "pyproject.toml", *sorted(ROOT.glob("requirements*.txt"))]:
        content.update(path.read_bytes())
    return content.hexdigest()


def build_venv(wheels: "list[str]") -> None:
    """Make .venv anew."""
    say("making .venv and installing the Python packages (minutes, the first time)")
    run([sys.executable, "-m", "venv", "--clear", str(VENV)])
    pip = [str(VENV / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check", "--use-pep517"]
    # One call for all that has dependencies: torch's exact pin then decides for every package that asks for torch.
    run([*pip, "-r", "requirements.txt", "-r", "requirements-dev.txt", *wheels])
    bare = ["requirements-nodeps.txt", "requirements-bench.txt", "requirements-diffusers.txt"]
    run([*pip, "--no-deps", *(part for name in bare for part in ("-r", name)), "-e", "."])


def provide_servers() -> None:
    """The servers that tests/faults starts, as far as they can be had; tried again once something has changed."""
    if SERVERS_STAMP.exists() and SERVERS_STAMP.read_text() == servers_state():
        return
    missing = [name for name in ("node", "npm") if not found_program(name)]
    # Where services are started by themselves, the package would open a web server to the network.
    if not found_program("nginx") and not Path("/run/systemd/system").is_dir():
        missing.append("nginx")
    install_by_apt([{"node": "nodejs", "nginx": "nginx-light"}.get(name, name) for name in missing])
    if found_program("node") and found_program("npm"):
        say(f"installing {AZURITE} by npm (a minute)")
        npm = ["npm", "install", "--no-audit", "--no-fund", "--fetch-retries=1", "--fetch-timeout=30000"]
        try:
            run([*npm, "--prefix", str(NODE_MODULES), AZURITE])
        except SetupError as error:
            say(f"{error}\nsetup: tried again the next time; until then the tests of az:// are skipped")
            return
    else:
        say("without Azurite (node and npm) the tests of az:// will be skipped")
    if not found_program("nginx"):
        say("without nginx the tests of https:// will be skipped; as root: apt-get install nginx-light")
    SERVERS_STAMP.write_text(servers_state())


def servers_state() -> str:
    """What decides which servers can be had."""
    return repr((AZURITE, *(found_program(name) for name in ("nginx", "node", "npm"))))


def found_program(name: str) -> "str | None":
    """Where a program is, of those for administrators too."""
    return shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin")))


def provide_dataset() -> None:
    """Fashion-MNIST's IDX files in runs/fashion-mnist: a link to apt's, or a verified download."""
    if DATASET.is_dir():
        return
    DATASET.parent.mkdir(exist_ok=True)
    if DATASET_OF_APT.is_dir():
        DATASET.unlink(missing_ok=True)
        DATASET.symlink_to(DATASET_OF_APT)
        return
    say(f"downloading Fashion-MNIST (30 MB) from {DATASET_URL}")
    partial = DATASET.with_suffix(".partial")
    partial.mkdir(exist_ok=True)
    for name, sha256 in DATASET_SHA256.items():
        download(f"{DATASET_URL}/{name}", partial / name, sha256)
    partial.rename(DATASET)


def download(url: str, path: Path, sha256: str) -> None:
    """One file, written only if its checksum is right."""
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            content = response.read()
    except OSError as error:
        raise SetupError(
            f"cannot download {url}: {error}. Put the four files into {DATASET}, "
            "or as root: apt-get install dataset-fashion-mnist"
        ) from None
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise SetupError(f"{url} has sha256 {found}, expected {sha256}: not used")
    path.write_bytes(content)


def run(command: "list[str]", environment: "dict[str, str] | None" = None) -> None:
    """Run quietly; a failure shows what was run and what it said."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SetupError(f"{done.stdout}\nthis failed with exit code {done.returncode}: {' '.join(command)}")


def say(text: str) -> None:
    """One line, at once."""
    print(f"setup: {text}", flush=True)


if __name__ == "__main__":
    try:
        provide_servers() if sys.argv[1:] == ["servers"] else main()
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        sys.exit(2)
