"""Tests that need no worker, no broker and, but for the private server's own, no server."""
