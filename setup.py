"""What setup.cfg can't say: the description is the README, without links into the repository."""

import re
from pathlib import Path

from setuptools import setup

readme = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
# A link such as [guarantees](docs/guarantees.rst) leads nowhere where only the README is shown.
description = re.sub(r"\[([^\]]+)\]\((?!https?:|#)[^)]+\)", r"\1", readme)

setup(long_description=description)
