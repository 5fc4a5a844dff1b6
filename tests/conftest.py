import os

# Before anything imports torch: the tests share few cores, and ranks that they start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest_plugins = ["launches"]
