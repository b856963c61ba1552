"""A shim for tools that still look for setup.py; all is said in setup.cfg."""

from setuptools import setup

setup()
