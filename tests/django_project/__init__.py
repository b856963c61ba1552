"""A real Django project: a shop with payments, its Celery app, and the library's app."""

import os

from tests.support.tasks import SETTINGS_VARIABLE

__all__: list[str] = []

# As Celery's guide has it, so that tasks find the project's app; not in a test's own process.
if SETTINGS_VARIABLE in os.environ:
    from tests.django_project.celery_app import app

    __all__ += ["app"]
