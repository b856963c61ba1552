"""Where the page enters Flower: each place is looked for, and done without where it is missing."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any, Final

from celery.events.state import Task
from tornado.template import Loader, Template

log = logging.getLogger("celery_idempotent")

#: Our own templates.
TEMPLATES: Final = Path(str(resources.files("celery_idempotent.ops.flower") / "templates"))

#: What workers add to the events of a task, in the order in which the task page shows it.
_ROWS: Final = ("idempotency_key", "idempotency_original")

_BROKER_ITEM: Final = re.compile(
    r"""<li\b(?:(?!<li\b).)*?reverse_url\(['"]broker['"]\).*?</li>\s*""", re.DOTALL
)
_LINKED_IDS: Final = "in ['parent_id', 'root_id']"
_BEFORE_CHILDREN: Final = "{% elif name == 'children' %}"
_KEY_ROW: Final = (
    "{% elif name == 'idempotency_key' and getattr(task, 'idempotency_record', None) %}"
    "<a href=\"{{ reverse_url('idempotency-record') }}"
    '?name={{ url_escape(str(task.idempotency_record)) }}">{{ task.idempotency_key }}</a>'
)


def _with_tab(text: str) -> str:
    """Put one item after "Broker": a copy of Flower's own, so that it looks as the others do."""
    found = _BROKER_ITEM.search(text)
    if found is None:
        log.warning("this Flower's navigation can't take a tab: the page is at /idempotency")
        return text
    item = found[0].replace("broker", "idempotency").replace("Broker", "Idempotency")
    return text[: found.end()] + item + text[found.end() :]


def _with_links(text: str) -> str:
    """Have the rows with key and original lead to the record and to the original's page."""
    if text.count(_LINKED_IDS) == 1 and text.count(_BEFORE_CHILDREN) == 1:
        text = text.replace(_LINKED_IDS, "in ['parent_id', 'root_id', 'idempotency_original']")
        text = text.replace(_BEFORE_CHILDREN, _KEY_ROW + _BEFORE_CHILDREN)
    return text


_PATCHES: Final[dict[str, Callable[[str], str]]] = {
    "navbar.html": _with_tab,
    "task.html": _with_links,
}


def patched(name: str, text: str) -> str:
    """Give a template of Flower's as it is to be used."""
    patch = _PATCHES.get(name)
    return text if patch is None else patch(text)


class PatchedLoader(Loader):
    """Loads Flower's templates, two of them with our additions, and ours from their own folder."""

    def _create_template(self, name: str) -> Template:
        folder = TEMPLATES if name.startswith("idempotency-") else Path(self.root)
        text = (folder / name).read_text(encoding="utf-8")
        return Template(patched(name, text), name=name, loader=self)


def add_pages(handlers: list[Any]) -> bool:
    """Put the pages in front of Flower's own; whether there is a place for them."""
    import flower.urls

    known = getattr(flower.urls, "handlers", None)
    if not isinstance(known, list):
        log.warning("this Flower keeps its pages elsewhere: there is no page for idempotency")
        return False
    named = {getattr(handler, "name", None) for handler in known}
    if not any(handler.name in named for handler in handlers if handler.name):
        known[0:0] = handlers
    return True


def add_tab() -> PatchedLoader | None:
    """Have Flower load its templates through ours; ``None`` where it can't."""
    import flower.urls

    settings = getattr(flower.urls, "settings", None)
    if not isinstance(settings, dict) or "template_path" not in settings:
        log.warning("this Flower keeps its settings elsewhere: it shows no tab for idempotency")
        return None
    present = settings.get("template_loader")
    if isinstance(present, PatchedLoader):
        return present
    loader = PatchedLoader(settings["template_path"])
    if present is None:
        settings["template_loader"] = loader
    else:
        log.warning("another template_loader is set: Flower shows no tab for idempotency")
    return loader


def add_rows() -> None:
    """Have the task page show key and original: it shows the fields of Celery's ``Task``."""
    fields = getattr(Task, "_fields", None)
    if not isinstance(fields, tuple):
        return
    for name in _ROWS:
        if name not in fields:
            # A class attribute, for the tasks whose events have no such field.
            setattr(Task, name, None)
            fields = (*fields, name)
    Task._fields = fields
