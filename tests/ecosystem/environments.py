"""Environments of packages that get along: each is made once, below a folder that git ignores."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.ecosystem.catalogue import EVERYWHERE, GROUPS

__all__ = ["CACHE", "python_of"]

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".ecosystem"


def python_of(group: str) -> Path:
    """Return a group's interpreter; its environment is made if it isn't there.

    Raises:
        subprocess.CalledProcessError: it can't be installed.
    """
    wanted = (*EVERYWHERE, *GROUPS[group])
    told = repr((sys.version_info[:3], sys.prefix, wanted)).encode()
    folder = CACHE / f"{group}-{hashlib.sha256(told).hexdigest()[:8]}"
    python = folder / "bin" / "python"
    if (folder / "complete").exists():
        return python
    for old in CACHE.glob(f"{group}-*"):
        shutil.rmtree(old)  # it has other packages, or is half made
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python))
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([*pip, "install", "-qq", "--no-compile", *wanted], check=True, env=environment)
    (folder / "complete").touch()
    return python
