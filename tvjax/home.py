"""Folders of the user, `~/...`, where there is no home too."""

import os
from pathlib import Path

from tvjax.errors import UserError


def expanded(place: str | Path) -> Path:
    """The folder, with the home directory for `~`.

    Raises:
      UserError: there is none: HOME is not set in some containers and jobs.
    """
    try:
        if str(place).startswith("~") and os.environ.get("HOME") == "":
            raise RuntimeError
        return Path(place).expanduser()
    except RuntimeError as error:
        raise UserError(
            f"{place}: there is no home directory here (HOME is not set); set HOME, or name "
            f"another folder (data.cache is given by --config.data.cache=DIR)"
        ) from error
