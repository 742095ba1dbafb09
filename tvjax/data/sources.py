"""`sources.json` beside the records: the files that they were made from, as they were then.

`read` are the stamps (see `stamps`) of all images and masks that were read, null for what was
missing or could not be opened; `passed_over` are those that `limit` left out: they were there.
"""

import os
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

from tvjax import files
from tvjax.data import stamps
from tvjax.data.stamps import Stamp
from tvjax.errors import UserError

FILE = "sources.json"


class Sources:
    """The files of a build, of the file or directory of labels and of the folder of all images.

    `listed` gives all files that count, sound or not, unless the labels name them.
    """

    def __init__(
        self, labels: Path, images: Path, listed: Callable[[], Iterable[Path]] = lambda: ()
    ):
        self.labels, self.images, self._listed = labels, images, listed
        self.stamps: dict[str, Stamp | None] = {}

    def read(self, file: Path) -> None:
        """Notes a file that is about to be read, or cannot be; of one that was noted, nothing."""
        name = self._name(file)
        if name not in self.stamps:
            self.stamps[name] = stamps.take(file)

    def add(self, stamps: Mapping[str, Stamp | None]) -> None:
        """Takes over what another process noted."""
        self.stamps |= stamps

    def check_unchanged(self, file: Path) -> None:
        """Checks that a file that has been read is still the one that was noted.

        Raises:
          UserError: it was written meanwhile.
        """
        stamp = self.stamps[self._name(file)]
        if stamp is not None:
            size, _, changed = stamps.signature(file)
            if [size, changed] != [stamp[0], stamp[2]]:
                raise UserError(
                    f"{file}: was changed while it was read; run the same command again"
                )

    def write(self, directory: Path, found: Iterable[Path], faulty: Collection[Path]) -> None:
        """Writes what was noted beside the records; sound files that were not were passed over."""
        passed_over = set(map(self._name, found)) - self.stamps.keys()
        passed_over -= set(map(self._name, faulty))
        known = passed_over | self.stamps.keys()
        for file in {*faulty, *self._listed()}:
            if self._name(file) not in known:
                self.read(file)
        content = {"read": self.stamps, "passed_over": sorted(passed_over)}
        stamps.write(directory / FILE, content)

    def changes(self, directory: Path) -> str:
        """What is other than when the records of a directory were made, in a few words.

        Files whose size and times are the same are not read; of the others the contents count.
        """
        read, passed_over = _read(directory)
        today = stamps.renewed(read, {name: self._path(name) for name in read})
        known = {*read, *passed_over}
        other = [name for name in read if not stamps.same(read[name], today[name])]
        new = [name for name in map(self._name, self._listed()) if name not in known]
        gone = [name for name in passed_over if not self._path(name).is_file()]
        return _told(
            changed=[name for name in other if read[name] and today[name]],
            added=[name for name in other if not read[name]] + new,
            removed=[name for name in other if not today[name]] + gone,
        )

    def _name(self, file: Path) -> str:
        is_label = file.is_relative_to(self.labels) and not file.is_relative_to(self.images)
        if file.parent == self.labels or is_label:
            return f"masks/{file.relative_to(self.labels)}"
        return f"images/{os.path.relpath(file, self.images)}"

    def _path(self, name: str) -> Path:
        kind, _, rest = name.partition("/")
        return (self.labels if kind == "masks" else self.images) / rest


def _read(directory: Path) -> tuple[dict[str, Stamp | None], list[str]]:
    try:
        found = files.read_object(directory / FILE)
        read, passed_over = found["read"], found["passed_over"]
        if not all(map(stamps.is_stamp, read.values())):
            raise ValueError("it holds no stamps")
        if not all(isinstance(name, str) for name in passed_over):
            raise ValueError("it holds no names")
        return read, passed_over
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{directory}: its {FILE} cannot be read ({error}); delete the directory, or name "
            f"another, and prepare anew"
        ) from error


def _told(**names: list[str]) -> str:
    """`1 changed (images/a.png), 2 added (images/b.png, ...)`."""
    return ", ".join(
        f"{len(found)} {how} ({min(found)}{', ...' if len(found) > 1 else ''})"
        for how, found in names.items()
        if found
    )
