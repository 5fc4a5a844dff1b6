"""A copy of a local directory in an object store, brought up to date by a background thread.

`sync` says what is copied; `restoring` reads the copy back.
"""

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

from dist_diffusion.errors import told
from dist_diffusion.storage import files
from dist_diffusion.storage.sync import Say, Sync


class Mirror:
    """Keeps the copy of `local` at `remote`; `parents` are the sub-folders that hold committed folders.

    `leave_out` are names in `local` that are not copied; `may_write` says whether this process still owns `local`.
    """

    def __init__(
        self,
        local: str,
        remote: str,
        parents: Sequence[str],
        leave_out: Sequence[str],
        say: Say,
        may_write: Callable[[], bool] = lambda: True,
    ) -> None:
        files.object_store(remote)
        self.remote = remote
        self._say = say
        self._sync = Sync(local, remote, parents, leave_out, say, lambda: not self._given_up and may_write())
        self._changed = threading.Condition()
        self._asked = self._done = 0
        self._ending = self._given_up = False
        self._error: str | None = None
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)
        self._thread.start()

    def request(self) -> None:
        """Asks for the copy to be brought up to date. However often during one pass, one more follows."""
        with self._changed:
            self._asked += 1
            self._changed.notify_all()

    @property
    def is_behind(self) -> bool:
        """Whether something that was requested is not done yet."""
        with self._changed:
            return self._done != self._asked

    @property
    def error(self) -> str | None:
        """Of the last pass, if it had one."""
        with self._changed:
            return self._error

    def finish(self, timeout_s: float | None) -> str | None:
        """Waits until all that was requested is done and ends the thread; the last pass's error, if it had one.

        After `timeout_s` (None: never) it is given up, between two files, and a later start goes on with it.
        """
        with self._changed:
            self._ending = True
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: self._done == self._asked, timeout_s):
                self._given_up = True
                return f"{self.remote} was not brought up to date within {timeout_s:g} s; a later start goes on with it"
        self._thread.join()
        return self._error

    def _run(self) -> None:
        # Before this run has anything to copy: a run that begins with the same mirror meanwhile shows by its commits.
        # Where it fails, the first pass looks, and tells.
        with suppress(Exception):
            self._sync.look()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._asked > self._done or self._ending)
                if self._asked == self._done:
                    return
                asked = self._asked
            error = self._attempt()
            with self._changed:
                self._done, self._error = asked, error
                self._changed.notify_all()

    def _attempt(self) -> str | None:
        """One pass. A failure is said: the work that is copied goes on without the copy."""
        try:
            self._sync.run()
        except Exception as caught:
            error = told(caught)
            if not self._given_up:
                self._say(f"the mirror is behind, the next pass tries again: {error}")
            return error
        return None
