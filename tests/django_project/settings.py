"""The settings of a process of its own: they come from the environment, as JSON."""

from __future__ import annotations

import json
import os

from tests.django_project.configuration import configuration
from tests.support.tasks import SETTINGS_VARIABLE

globals().update(configuration(**json.loads(os.environ[SETTINGS_VARIABLE])))
