"""Measures the speed: every goal is a ratio, measured side by side on one private server."""
