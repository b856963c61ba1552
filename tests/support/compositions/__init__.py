"""Celery's ways of composing tasks, each as a function of the tasks, and what comes out of it."""

from __future__ import annotations

from tests.support.compositions import (
    callbacks,
    chains,
    chords,
    endings,
    groups,
    replacing,
    stamps,
)
from tests.support.compositions.base import ANYTHING, COMPOSITIONS, Composition, Tasks

__all__ = [
    "ANYTHING",
    "COMPOSITIONS",
    "Composition",
    "Tasks",
    "callbacks",
    "chains",
    "chords",
    "endings",
    "groups",
    "replacing",
    "stamps",
]
