"""What a person sees: rank 0 speaks on stdout, every rank keeps its own log, a terminal gets a progress bar."""

import os
import sys
import threading
from datetime import datetime, timezone
from types import TracebackType
from typing import TextIO

from tqdm import tqdm


class Progress:
    """A bar, or nothing where there is none. Close it before another is made."""

    def __init__(self, bar: "tqdm | None") -> None:
        self._bar = bar

    def update(self, done: int, note: str = "") -> None:
        """Moves to `done` of the total, with a note behind the bar."""
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Ends the bar's line."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Console:
    """One rank's voice. `log_path` None keeps no log; else file and folder are made at the first line, so that who has
    nothing to say leaves nothing behind. Safe to call from several threads.
    """

    def __init__(self, log_path: str | None, rank: int) -> None:
        self._rank = rank
        self._lock = threading.Lock()
        self._log_path = log_path
        self._log: TextIO | None = None

    def say(self, text: str) -> None:
        """A line for everyone: on stdout if this is rank 0, and in this rank's log."""
        with self._lock:
            if self._rank == 0:
                _print(text, sys.stdout)
            self._write(text)

    def error(self, text: str) -> None:
        """A line on stderr, whichever rank this is, and in its log."""
        with self._lock:
            _print(text, sys.stderr)
            self._write(text)

    def progress(self, total: int, start: int = 0, unit: str = "step") -> Progress:
        """A bar from `start` to `total` if this is rank 0 on a terminal, else nothing: its lines come through say."""
        if self._rank != 0 or not sys.stderr.isatty():
            return Progress(None)
        return Progress(tqdm(total=total, initial=start, unit=unit, dynamic_ncols=True, file=sys.stderr))

    def close(self) -> None:
        """Closes the log."""
        if self._log is not None:
            self._log.close()
        self._log = self._log_path = None

    def _write(self, text: str) -> None:
        if self._log_path is None:
            return
        time = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        try:
            if self._log is None:
                self._log = _opened(self._log_path)
            self._log.write(f"{time} rank {self._rank}: {text}\n")
        except OSError as error:
            # A full disk must not end a run by the very message that tells of it.
            self._log = self._log_path = None
            _print(f"rank {self._rank} keeps no log any more: {error}", sys.stderr)


def _opened(path: str) -> TextIO:
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    return open(path, "a", buffering=1, encoding="utf-8", errors="backslashreplace")


def _print(text: str, stream: TextIO) -> None:
    """Prints above a bar, if one is shown. What the stream cannot hold, as parts of file names, is escaped."""
    encoding = stream.encoding or "utf-8"
    tqdm.write(text.encode(encoding, "backslashreplace").decode(encoding), file=stream)
    stream.flush()
