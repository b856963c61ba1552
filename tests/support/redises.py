"""A Redis of version 7 or newer, beside the Valkey that all other tests run on."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from tests.support.missing import NotThere

OLDEST = 7


def redis_binary() -> Path:
    """Where it is.

    Raises:
        NotThere: there is none, or it is an older one, or Valkey by another name.
    """
    found = shutil.which("redis-server")
    said = ""
    if found is not None:
        done = subprocess.run([found, "--version"], capture_output=True, text=True, check=False)
        said = done.stdout.strip()
        version = re.match(r"Redis server v=(\d+)\.", said)
        if version and int(version[1]) >= OLDEST:
            return Path(found)
    raise NotThere(
        f"no redis-server of version {OLDEST} or newer on PATH (found: {said or 'none'}): install "
        "one (apt install redis-server)"
    )
