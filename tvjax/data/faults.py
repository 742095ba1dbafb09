"""What is wrong with single images, collected so that one error tells of all of them."""

from pathlib import Path

from tvjax.errors import UserError

SHOWN = 3
"""Reasons that a message tells."""


class Faults:
    """Images that cannot be used, with the reason of each; nothing is raised until `check`."""

    def __init__(self):
        self.reasons: dict[Path, str] = {}

    def add(self, file: Path, reason: object) -> None:
        """Notes an image; of several reasons the first is kept."""
        self.reasons.setdefault(file, str(reason))

    def check(self, total: int) -> None:
        """Raises one error for all that were noted, of `total` images that were looked at.

        Raises:
          UserError: with the number of images and the first reasons.
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
        helps = number < total and not all("--object" in reason for reason in reasons)
        raise UserError(
            f"{number} of {total} images cannot be used: {shown}" + (advice if helps else "")
        )
