"""Tests of the HTTP edge, in each adapter."""
