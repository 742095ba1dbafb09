"""What is wrong with single images, collected so that one error tells of all of them."""

from pathlib import Path

from tvjax.errors import UserError

SHOWN = 3
"""Reasons that a message tells."""


class Faults:
    """Images that cannot be used, with the reason of each; nothing is raised until `check`."""

    def __init__(self):
        self.reasons: dict[Path, str] = {}
        self._labels: set[Path] = set()

    def add(self, file: Path, reason: object, *, is_label: bool = False) -> None:
        """Notes an image, or labels of none; of several reasons the first is kept."""
        self.reasons.setdefault(file, str(reason))
        if is_label:
            self._labels.add(file)

    def check(self, total: int, *, skip_bad: bool = False) -> None:
        """Raises one error for all that were noted, of `total` files that were looked at.

        With `skip_bad` it does not advise that flag, which was given.

        Raises:
          UserError: with the number of images, that of labels of none, and the first reasons.
        """
        if not self.reasons:
            return
        number, reasons = len(self.reasons), list(self.reasons.values())
        shown = "; ".join(reasons[:SHOWN])
        if number > SHOWN:
            shown += f"; and {number - SHOWN} more"
        if total == 1:
            raise UserError(shown)
        advice = ". Mend them, or leave them out by tvjax.data.prepare --skip_bad"
        # A flag that they ask for is about all files, and leaving out some would be no help.
        helps = (
            number < total and not skip_bad and not all("--object" in reason for reason in reasons)
        )
        labels = len(self._labels)
        what = [f"{number - labels} of {total - labels} images"] * (number > labels)
        what += [f"{labels} file{'s' * (labels > 1)} of labels"] * (labels > 0)
        raise UserError(f"{' and '.join(what)} cannot be used: {shown}" + (advice if helps else ""))
