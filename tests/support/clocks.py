"""A clock that a test moves under a running process, made from a few lines of C put before libc."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.missing import NotThere

#: Reads how many seconds the clock is off from a file, each time that somebody asks for the time.
_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long off(void) {
    const char *path = getenv("CLOCK_IS_OFF_BY");
    char text[32] = {0};
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return 0;
    if (read(file, text, sizeof text - 1) < 0) text[0] = 0;
    close(file);
    return atol(text);
}

int gettimeofday(struct timeval *now, void *zone) {
    static int (*real)(struct timeval *, void *);
    if (!real) real = dlsym(RTLD_NEXT, "gettimeofday");
    int failed = real(now, zone);
    if (!failed) now->tv_sec += off();
    return failed;
}

int clock_gettime(clockid_t which, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(which, now);
    if (!failed && which == CLOCK_REALTIME) now->tv_sec += off();
    return failed;
}

time_t time(time_t *where) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (where) *where = now.tv_sec;
    return now.tv_sec;
}
"""


class MovableClock:
    """What a process needs in its environment so that :meth:`move` moves its clock.

    Raises:
        NotThere: it can't be had here.
    """

    def __init__(self, directory: Path) -> None:
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None or sys.platform != "linux":
            raise NotThere("a C compiler on Linux is needed to move a process's clock")
        source, library = directory / "clock.c", directory / "clock.so"
        source.write_text(_SOURCE)
        command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode:
            raise NotThere(f"the C compiler failed: {made.stderr}")
        self._off = directory / "off"
        self.move(0)
        self.environment = {"LD_PRELOAD": str(library), "CLOCK_IS_OFF_BY": str(self._off)}

    def move(self, seconds: int) -> None:
        """Set how far the clock is off from now on."""
        fresh = self._off.with_suffix(".new")
        fresh.write_text(str(seconds))
        fresh.replace(self._off)
