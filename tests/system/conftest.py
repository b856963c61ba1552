"""Fixtures for what runs beside workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.flowers import NEWEST, Flower, folder_of

StartFlower = Callable[..., Flower]


def flower_folder(version: str) -> Path:
    """Where that version lies, or this test does without it."""
    return folder_of(version)


@pytest.fixture
def start_flower(tmp_path: Path) -> Iterator[StartFlower]:
    """Start a Flower with some settings: ``start_flower(system.settings, "2.2.0", tab=True)``."""
    started = []

    def start(settings: dict[str, Any], version: str = NEWEST, **options: Any) -> Flower:
        flower = Flower(flower_folder(version), settings, tmp_path, **options)
        started.append(flower)
        return flower.wait_until_ready()

    yield start
    for flower in started:
        flower.stop()
