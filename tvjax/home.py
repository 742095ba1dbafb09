"""Folders of the user, `~/...`, where there is no home too."""

import os
import re
from pathlib import Path

from tvjax.errors import UserError


def expanded(place: str | Path) -> Path:
    """The folder, with the home directory for `~`.

    Raises:
      UserError: there is none: HOME is not set in some containers and jobs.
    """
    found = os.path.expanduser(place)  # `~name` stays where there is no such user, as in shells
    has_none = os.environ.get("HOME") == "" or found.startswith("~")
    if re.match("~(/|$)", str(place)) and has_none:
        raise UserError(
            f"{place}: there is no home directory here (HOME is not set); set HOME, or name "
            f"another folder (data.cache is given by --config.data.cache=DIR)"
        )
    return Path(found)
