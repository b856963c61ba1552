"""Which store a URL names: the scheme says which class, and other packages may add schemes."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

from celery_idempotent.errors import ConfigurationError, how_to_install
from celery_idempotent.stores.base import Store

#: The entry point group in which a package registers a store: the name is the URL's scheme, the
#: value is ``module:Class``, a :class:`~celery_idempotent.stores.base.Store` with ``from_url``.
GROUP: Final = "celery_idempotent.stores"

_REDIS: Final = "celery_idempotent.stores.redis.store:RedisStore"
_CLUSTER: Final = "celery_idempotent.stores.redis.cluster:ClusterStore"
_SQL: Final = "celery_idempotent.stores.sql.store:SqlStore"
_DJANGO: Final = "celery_idempotent.django.store:DjangoStore"
#: By text, so that nothing is imported that no URL asks for, from the layers above least of all.
_BUILT_IN: Final[Mapping[str, str]] = {
    **dict.fromkeys(("redis", "rediss", "redis+socket", "unix", "sentinel"), _REDIS),
    **dict.fromkeys(("redis+cluster", "rediss+cluster"), _CLUSTER),
    **dict.fromkeys(("postgresql", "postgres", "mysql", "mariadb", "sqlite"), _SQL),
    "django": _DJANGO,
    "memory": "celery_idempotent.stores.memory:MemoryStore",
}
#: The extra of this package that installs what a class needs.
_EXTRAS: Final = {_SQL: "sql", _DJANGO: "django"}


def store_from_url(url: str, options: Mapping[str, Any] | None = None) -> Store:
    """Make the store that a URL names; nothing is connected yet.

    Args:
        url: ``redis://``, ``rediss://``, ``redis+socket://``, ``sentinel://``,
            ``redis+cluster://``, ``rediss+cluster://``, ``postgresql://``, ``mysql://``,
            ``mariadb://``, ``sqlite:///``, ``django://``, ``memory://``, or with a scheme that
            another package has registered in the entry point group :data:`GROUP`.
        options: passed on to the client (``socket_timeout``, ``master_name``, ``pool_size``, ...).

    Raises:
        ConfigurationError: there is no such kind of store, the URL cannot be read, or the package
            that it needs is not installed.
    """
    return store_class(url).from_url(url, options)


def store_class(url: str) -> type[Store]:
    """Return the class of the store that a URL names.

    Raises:
        ConfigurationError: as :func:`store_from_url`.
    """
    scheme = url.partition(":")[0].lower()
    kind = scheme.partition("+")[0]  # behind the plus, a driver
    if scheme in _BUILT_IN:
        return _built_in(url, _BUILT_IN[scheme])
    if _BUILT_IN.get(kind) == _SQL:
        return _built_in(url, _SQL)
    added = {point.name.lower(): point for point in entry_points(group=GROUP)}
    point = added.get(scheme) or added.get(kind)
    if point is not None:
        return _added(url, point)
    known = "://, ".join((*_BUILT_IN, *sorted(set(added) - set(_BUILT_IN))))
    raise ConfigurationError(
        f"there is no store for {mask_url(url)!r}: idempotency_store_url may begin with "
        f"{known}://; a package adds a store by an entry point in the group {GROUP!r}, whose name "
        "is the scheme"
    )


def _built_in(url: str, named: str) -> type[Store]:
    module, _, name = named.partition(":")
    try:
        made: type[Store] = getattr(importlib.import_module(module), name)
        return made
    except ImportError as exc:
        raise ConfigurationError(
            f"the store {mask_url(url)!r} needs {exc.name}: "
            f"{how_to_install(_EXTRAS.get(named, 'sql'))}"
        ) from exc
    except Exception as exc:
        if named != _DJANGO:
            raise
        raise ConfigurationError(
            f"the store {url!r} needs Django set up, and 'celery_idempotent.django' among "
            f"INSTALLED_APPS: {exc}"
        ) from exc


def _added(url: str, point: EntryPoint) -> type[Store]:
    package = point.dist.name if point.dist is not None else "a package"
    where = f"the store {mask_url(url)!r} is {point.value}, as the entry point of {package} says"
    try:
        made = point.load()
    except Exception as exc:
        raise ConfigurationError(f"{where}, which can't be loaded: {exc!r}") from exc
    if not (isinstance(made, type) and Store in made.__mro__):
        raise ConfigurationError(
            f"{where}, which is no store: it has to be a class that inherits from "
            "celery_idempotent.stores.base.Store"
        )
    return made


def mask_url(url: str) -> str:
    """Return a URL that may be logged or shown: without its password.

    Several URLs joined by ``;`` (Sentinel) are masked one by one. A password is found even where
    it is written so that the URL cannot be read (with a ``/``, ``?``, ``#`` or ``;`` in it).
    """
    return ";".join(_mask_one(part) for part in re.split(r";(?=[\w+.-]+://)", url))


def _mask_one(url: str) -> str:
    scheme, mark, rest = url.partition("://") if "://" in url else ("", "", url)
    login, at, place = rest.rpartition("@")
    user, colon, _ = login.partition(":")
    if re.search("[/?#]", user):
        return f"{scheme}{mark}**"  # whatever the @ belongs to: better to show too little
    place, asked, query = place.partition("?")
    shown = "&".join(
        re.sub("=.*", "=**", item) if "pass" in item.lower() else item for item in query.split("&")
    )
    return f"{scheme}{mark}{user}{colon and ':**'}{at}{place}{asked}{shown}"
