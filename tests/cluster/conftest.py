from pathlib import Path

import pytest
from cluster.whole import train_whole
from support import Launcher


@pytest.fixture(scope="session")
def whole(launcher: Launcher, workplace: Path) -> Path:
    return train_whole(launcher, workplace)
