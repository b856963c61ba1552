"""What setup.cfg can't say: the README as an index shows it, where links to files lead nowhere."""

import re
from configparser import ConfigParser
from pathlib import Path

HERE = Path(__file__).parent


def standing_alone(text, source=None):
    """Let the links to files lead to ``source``; without one, name the files instead."""

    def replace(link):
        words, target = link.groups()
        if "://" in target or target.startswith("#"):
            return link[0]
        if source:
            return f"[{words}]({source.rstrip('/')}/{target})"
        return f"`{target}`" if target.endswith(words) else f"{words} (`{target}`)"

    return re.sub(r"\[([^\]]+)\]\(([^)]+)\)", replace, text)


def description():
    """Return the long description; ``Source`` among the project's URLs is where its files are."""
    config = ConfigParser()
    config.read(HERE / "setup.cfg", encoding="utf-8")
    urls = config.get("metadata", "project_urls", fallback="")
    source = dict(re.findall(r"^(\w+) = (\S+)$", urls, re.MULTILINE)).get("Source")
    return standing_alone((HERE / "README.md").read_text(encoding="utf-8"), source)


if __name__ == "__main__":
    from setuptools import setup

    setup(long_description=description())
