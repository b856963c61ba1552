"""The project's settings as a table, so that a test's own process can take them too."""

from __future__ import annotations

from typing import Any

from sqlalchemy.engine import make_url


def database(url: str) -> dict[str, Any]:
    """A database of tests.support.databases as Django names it."""
    parts = make_url(url)
    if parts.drivername.startswith("sqlite"):
        return {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": parts.database,
            "OPTIONS": {"timeout": 20},
        }
    is_mysql = parts.drivername.startswith("mysql")
    if is_mysql:
        # PyMySQL takes the place of mysqlclient.
        import pymysql

        pymysql.install_as_MySQLdb()
    return {
        "ENGINE": f"django.db.backends.{'mysql' if is_mysql else 'postgresql'}",
        "NAME": parts.database,
        "USER": parts.username or "",
        "PASSWORD": parts.password or "",
        "HOST": parts.host or "",
        "PORT": str(parts.port or ""),
    }


def configuration(url: str, **settings: Any) -> dict[str, Any]:
    """All settings, with the main database at ``url``."""
    return {
        "SECRET_KEY": "for tests only",
        "DEBUG": False,
        "ALLOWED_HOSTS": ["*"],
        "USE_TZ": True,
        "ROOT_URLCONF": "tests.django_project.urls",
        "DATABASES": {"default": database(url)},
        "DEFAULT_AUTO_FIELD": "django.db.models.BigAutoField",
        "STATIC_URL": "/static/",
        "INSTALLED_APPS": [
            "django.contrib.admin",
            "django.contrib.auth",
            "django.contrib.contenttypes",
            "django.contrib.sessions",
            "django.contrib.messages",
            "django.contrib.staticfiles",
            "celery_idempotent.django",
            "tests.django_project.shop",
        ],
        "MIDDLEWARE": [
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
            "django.contrib.messages.middleware.MessageMiddleware",
            "tests.django_project.web.Idempotency",
        ],
        "TEMPLATES": [
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "APP_DIRS": True,
                "OPTIONS": {
                    "context_processors": [
                        "django.template.context_processors.request",
                        "django.contrib.auth.context_processors.auth",
                        "django.contrib.messages.context_processors.messages",
                    ]
                },
            }
        ],
        **settings,
    }
