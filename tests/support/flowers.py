"""Real Flowers of every version that is supported, each a process of its own, asked over HTTP."""

from __future__ import annotations

import base64
import contextlib
import http.cookiejar
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from celery_idempotent.testing.servers import _free_port
from tests.support import warm
from tests.support.missing import NotThere
from tests.support.tasks import SETTINGS_VARIABLE
from tests.support.waiting import eventually
from tests.support.workers import ROOT

#: Flower 1 needs a module that Python has dropped in 3.12.
VERSIONS = (*(("1.2.0",) if sys.version_info < (3, 12) else ()), "2.0.1", "2.1.0", "2.2.0")
NEWEST = VERSIONS[-1]

_CACHE = Path(sys.prefix) / "flower-versions"
_CONFIGURATION = ROOT / "docs" / "examples" / "flowerconfig.py"


def folder_of(version: str) -> Path:
    """Where a version of Flower lies, by itself; the packages that it needs are those of the tests.

    Raises:
        NotThere: it is not there yet, and can't be installed.
    """
    folder = _CACHE / version
    if folder.exists():
        return folder
    part = _CACHE / f"{version}.{os.getpid()}"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
            *("--no-deps", "--target", str(part), f"flower=={version}"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise NotThere(f"Flower {version} can't be installed: {done.stderr.strip()[-300:]}")
    with contextlib.suppress(OSError):  # another run was faster
        part.rename(folder)
    return folder


class Answer(NamedTuple):
    """What Flower answered."""

    status: int
    text: str
    headers: Any

    @property
    def json(self) -> Any:
        """Its JSON."""
        return json.loads(self.text)


class Browser:
    """Keeps cookies, follows no redirects, and logs in where it was told how."""

    def __init__(self, url: str, login: str | None = None) -> None:
        self.url = url
        self.cookies = http.cookiejar.CookieJar()
        #: What it sends along each time.
        self.headers: dict[str, str] = {}
        if login is not None:
            self.headers["Authorization"] = "Basic " + base64.b64encode(login.encode()).decode()
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}),
            urllib.request.HTTPCookieProcessor(self.cookies),
            _NoRedirects(),
        )

    def get(self, path: str, **query: Any) -> Answer:
        """Ask for a page."""
        asked = f"?{urllib.parse.urlencode(query)}" if query else ""
        return self._open(urllib.request.Request(self.url + path + asked))

    def post(self, path: str, **form: Any) -> Answer:
        """Send a form."""
        data = urllib.parse.urlencode(form).encode()
        return self._open(urllib.request.Request(self.url + path, data=data))

    @property
    def xsrf(self) -> str:
        """The token that the last page has set as a cookie."""
        return next(str(cookie.value) for cookie in self.cookies if cookie.name == "_xsrf")

    def _open(self, request: urllib.request.Request) -> Answer:
        for name, value in self.headers.items():
            request.add_header(name, value)
        try:
            with self._opener.open(request, timeout=30) as answer:
                return Answer(answer.status, answer.read().decode(), answer.headers)
        except urllib.error.HTTPError as exc:
            with exc:
                return Answer(exc.code, exc.read().decode(), exc.headers)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


class Flower:
    """``celery flower`` of one version, on a free port of the loopback interface.

    Args:
        folder: where that version lies.
        settings: the app's.
        directory: where it runs, and its log goes.
        tab: whether it has the page for idempotency.
        options: more of Flower's options.
        environment: more variables.
        command: how it is started, after ``celery -A app``.
    """

    def __init__(
        self,
        folder: Path,
        settings: dict[str, Any],
        directory: Path,
        *,
        tab: bool = False,
        options: Sequence[str] = (),
        environment: dict[str, str] | None = None,
        program: Sequence[str] = ("-m", "celery"),
        command: Sequence[str] = ("flower",),
    ) -> None:
        self.port = _free_port()
        self.directory = directory / f"flower-{uuid.uuid4().hex[:6]}"
        self.directory.mkdir()
        if tab:
            shutil.copy(_CONFIGURATION, self.directory)
        self._log = self.directory / "log"
        with open(self._log, "wb") as log:
            self._process = warm.start(
                [
                    *(*program, "-A", "tests.support.app", *command),
                    *(f"--port={self.port}", "--address=127.0.0.1", *options),
                ],
                cwd=self.directory,
                env={
                    **os.environ,
                    SETTINGS_VARIABLE: json.dumps(settings),
                    "PYTHONPATH": os.pathsep.join((str(folder), str(ROOT))),
                    "FLOWER_UNAUTHENTICATED_API": "true",
                    **(environment or {}),
                },
                stdout=log,
            )

    @property
    def log(self) -> str:
        """All that it has logged."""
        return self._log.read_text(errors="replace")

    def browser(self, prefix: str = "", login: str | None = None) -> Browser:
        """Somebody who looks at it."""
        return Browser(f"http://127.0.0.1:{self.port}{prefix}", login)

    def wait_until_ready(self) -> Flower:
        """Return once it answers."""

        def answers_or_gone() -> bool:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return True
            return self._process.poll() is not None

        eventually(answers_or_gone, "Flower answers", timeout=60)
        assert self._process.poll() is None, f"Flower did not start:\n{self.log}"
        return self

    def stop(self) -> None:
        """End it."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
