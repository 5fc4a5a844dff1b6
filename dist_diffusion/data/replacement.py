"""What stands for a sample that cannot be decoded: its nearest decodable neighbour in its block.

Positions never move and no batch is short. What cannot be read, or is not what was written, is never replaced.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from dist_diffusion.config.schema import DataOptions
from dist_diffusion.data.decoding import Decoder, Decoding
from dist_diffusion.data.images import UndecodableError
from dist_diffusion.data.order import Order
from dist_diffusion.data.reader import Reader
from dist_diffusion.data.views import Views
from dist_diffusion.errors import DataError

HOW_TO_FIND_ALL = "python tools/verify_shards.py SHARDS --decode lists what cannot be decoded"


@dataclass(frozen=True)
class Replaced:
    """A sample that could not be decoded, and the row that stands for it."""

    step: int
    shard: str
    key: str
    reason: str
    row: int
    by: int

    def to_json(self) -> dict[str, int | str]:
        """For metrics; `step` counts completed steps there."""
        return {"step": self.step + 1, "shard": self.shard, "key": self.key, "reason": self.reason, "by": self.by}

    def __str__(self) -> str:
        return f"sample {self.key} of shard {self.shard} cannot be decoded ({self.reason}); another stands for it"


class Replacer:
    """Finds replacements for a rank's slots. One thread at a time."""

    def __init__(self, options: DataOptions, order: Order, reader: Reader, decoder: Decoder) -> None:
        self._options, self._order, self._reader, self._decoder = options, order, reader, decoder
        self._in_a_row = 0

    def replace(
        self, step: int, slots: range, rows: list[int], views: Views, decoding: Decoding
    ) -> tuple[Replaced, ...]:
        """Fill the gaps of a decoded step, in `rows` and in its images; returns what was replaced.

        DataError where data.undecodable=fail, where data.max_replaced_in_a_row is passed, or nothing can stand in.
        """
        replaced = []
        for i, slot in enumerate(slots):
            reason = self._reason(rows[i], i, views, decoding)
            if reason is None:
                self._in_a_row = 0
                continue
            replaced.append(self._replace(step, slot, rows[i], i, views, decoding, reason))
            rows[i] = replaced[-1].by
        return tuple(replaced)

    def _reason(self, row: int, i: int, views: Views, decoding: Decoding) -> str | None:
        """Why a sample cannot be decoded, asked again here: a decode process also gives up on what it cannot read."""
        if i not in decoding.failed:
            return None
        try:
            self._decoder.decode(row, views, i, decoding.images[i])
        except UndecodableError as error:
            return str(error)
        return None

    def _replace(
        self, step: int, slot: int, row: int, i: int, views: Views, decoding: Decoding, reason: str
    ) -> Replaced:
        where = f"{self._reader.describe(row)} cannot be decoded: {reason}"
        if self._options.undecodable == "fail":
            raise DataError(f"{where}. With data.undecodable=replace another stands for it; {HOW_TO_FIND_ALL}")
        self._in_a_row += 1
        if self._in_a_row > self._options.max_replaced_in_a_row:
            raise DataError(
                f"{where}, and so were the {self._in_a_row - 1} samples before it: more in a row than "
                f"data.max_replaced_in_a_row allows; {HOW_TO_FIND_ALL}"
            )
        for by in self._neighbours(step, slot):
            try:
                self._decoder.decode(by, views, i, decoding.images[i])
            except UndecodableError:
                continue
            shard, _ = self._reader.locate(row)
            return Replaced(step, shard.name, self._reader.key(row), reason, row, by)
        raise DataError(f"{where}, and neither can any other of its block of samples; {HOW_TO_FIND_ALL}")

    def _neighbours(self, step: int, slot: int) -> Iterator[int]:
        """The other rows of the slot's block: the earlier ones, nearest first, then the later ones."""
        block, place = self._order.block_of(step, slot)
        yield from block[:place][::-1].tolist()
        yield from block[place + 1 :].tolist()
