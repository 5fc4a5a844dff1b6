"""Which members of a tar make up a sample: WebDataset's rule, said aloud where it is broken."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from dist_diffusion.data.tars import CutBetweenMembersError, DamagedTarError, Member, reason_against

# All sort after "cls": in our shards the image is the last member of its sample.
EXTENSIONS = ("gif", "jpeg", "jpg", "png", "webp")
LATENT = "npy"
LABELS = ("cls", "json")

# A key reaches to the first dot of the file's own name.
_KEYED = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)


@dataclass
class Sample:
    """Members that follow each other with one key, by extension in lower case."""

    key: str
    members: dict[str, Member] = field(default_factory=dict)

    @property
    def image(self) -> Member | None:
        """The one image, or where there is none the latent."""
        found = [self.members[name] for name in EXTENSIONS if name in self.members]
        if found:
            return found[0] if len(found) == 1 else None
        return self.members.get(LATENT)

    @property
    def reason(self) -> str:
        """Why there is no `image`."""
        found = ", ".join(name for name in EXTENSIONS if name in self.members)
        return f"more than one image ({found})" if found else f"no image ({', '.join(EXTENSIONS)}) and no {LATENT}"

    @property
    def parts(self) -> set[str]:
        """The extensions, all kinds of images being one."""
        return {"image" if name in (*EXTENSIONS, LATENT) else name for name in self.members}


@dataclass(frozen=True)
class LeftOut:
    """A member that belongs to no sample, and why."""

    name: str
    reason: str


def samples(what: str, members: Iterable[Member]) -> Iterator[Sample | LeftOut]:
    """Groups a tar's members. Folders and names without an extension are passed over, as WebDataset does.

    A tar that ends between two members of one sample raises an error that names the sample.
    """
    current: Sample | None = None
    usual: set[str] | None = None
    seen: set[str] = set()
    members = iter(members)
    while True:
        try:
            found = next(members, None)
        except CutBetweenMembersError as error:
            raise _cut_inside(what, current, usual, error) from error
        key, extension = _split(found) if found else ("", "")
        if current and key != current.key and (extension or not found):
            yield current
            usual, current = usual or current.parts, None
        if not found:
            return
        reason = _reason_against(found, extension, current, seen, key)
        if reason:
            yield LeftOut(found.name, reason)
        elif extension:
            current = current or Sample(key)
            current.members[extension] = found
            seen.add(key)


def _split(member: Member) -> tuple[str, str]:
    """Key and extension; both empty where the member is passed over."""
    match = _KEYED.fullmatch(member.name)
    return ("", "") if member.is_folder or not match else (match[1], match[2].lower())


def _reason_against(member: Member, extension: str, current: Sample | None, seen: set[str], key: str) -> str | None:
    if member.is_folder:
        return None
    if not member.is_file:
        return "it is a link or a device, not a file"
    reason = reason_against(member.name)
    if reason or not extension:
        return reason
    if current is None and key in seen:
        return f"the key {key} occurs twice"
    return f"{key}.{extension} occurs twice" if current and extension in current.members else None


def _cut_inside(what: str, sample: Sample | None, usual: set[str] | None, error: CutBetweenMembersError) -> Exception:
    """The error of a tar that was cut between members: of one sample, or of two."""
    if sample is None:
        return error
    missing = (usual or {"image", *(() if "json" in sample.parts else ("cls",))}) - sample.parts
    if not missing:
        return error
    return DamagedTarError(
        f"{what} is cut short at byte {error.byte}, between the files of sample {sample.key}: "
        f"{', '.join(sorted(sample.parts))} is there, {', '.join(sorted(missing))} is not; restore it or fetch it again"
    )
