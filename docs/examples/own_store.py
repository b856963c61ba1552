"""A store of your own: records in one file, which all processes of a host share."""

import sqlite3
import time
from contextlib import closing, nullcontext

import pytest

from celery_idempotent import StoreUnavailable
from celery_idempotent.stores.deciding import DecidingStore, Row, Rows, fit
from celery_idempotent.testing.store_contract import StoreContract

TABLES = """
    CREATE TABLE IF NOT EXISTS records (key PRIMARY KEY, record, expires_ms);
    CREATE TABLE IF NOT EXISTS slips (key PRIMARY KEY, slip, expires_ms);
    CREATE TABLE IF NOT EXISTS steps (key, name, step, PRIMARY KEY (key, name));
"""


class FileRows(Rows):
    def __init__(self, path, clock=lambda: time.time_ns() // 1000):
        self.path, self.clock = path, clock
        self.where = f"file://{path}"

    def operate(self, work):
        try:
            with closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
                connection.executescript(TABLES)
                with connection:  # commits, or rolls back where it is left by an exception
                    connection.execute("BEGIN IMMEDIATE")  # from here on, nobody else writes
                    return work(connection)
        except sqlite3.Error as exc:
            raise StoreUnavailable(f"{self.where} does not answer: {exc}") from exc

    def transaction(self, at):
        return nullcontext()  # operate() has begun one

    def read(self, at, key="", slip_key="", awaited_key="", queued_key=""):
        record = "SELECT record, 0, 0, expires_ms FROM records WHERE key = ?"
        slip = "SELECT slip, expires_ms FROM slips WHERE key = ?"
        found = at.execute(record, [fit(key)]).fetchone() or (None,) * 4
        for name in (slip_key, awaited_key, queued_key):
            found += at.execute(slip, [fit(name)]).fetchone() or (None, None)
        return Row.found(self.clock(), *found)

    def write_record(self, at, key, row, record, expires_ms):
        values = [fit(key), record.pack(), expires_ms]
        at.execute("REPLACE INTO records VALUES (?, ?, ?)", values)
        return True  # nobody can have written it since it was read

    def write_slip(self, at, slip_key, row, slip, expires_ms):
        if slip is None:
            at.execute("DELETE FROM slips WHERE key = ?", [fit(slip_key)])
        else:
            values = [fit(slip_key), slip.pack(), expires_ms]
            at.execute("REPLACE INTO slips VALUES (?, ?, ?)", values)
        return True

    def read_steps(self, at, key):
        return dict(at.execute("SELECT name, step FROM steps WHERE key = ?", [fit(key)]))

    def write_step(self, at, key, name, packed):
        at.execute("REPLACE INTO steps VALUES (?, ?, ?)", [fit(key), name, packed])

    def drop_steps(self, at, key, start=""):
        some = "key = ? AND substr(name, 1, ?) = ?"
        at.execute(f"DELETE FROM steps WHERE {some}", [fit(key), len(start), start])

    def page(self, at, start, after, count):
        live = "SELECT key FROM records WHERE key > ? AND substr(key, 1, ?) = ? AND expires_ms > ?"
        values = [after, len(start), start, self.clock() // 1000, count]
        return [key for (key,) in at.execute(f"{live} ORDER BY key LIMIT ?", values)]

    def page_beside(self, at, start, after, count):
        keys = "SELECT key FROM slips WHERE key > ? AND substr(key, 1, ?) = ? ORDER BY key LIMIT ?"
        return [key for (key,) in at.execute(keys, [after, len(start), start, count])]


class FileStore(DecidingStore):
    @classmethod
    def from_url(cls, url, options=None):
        return cls(FileRows(url.partition("://")[2], **(options or {})))


class Clock:
    us = 1_750_000_000_000_000

    def now_us(self):
        return self.us

    def advance(self, ms):
        self.us += ms * 1000


class TestFileStore(StoreContract):
    @pytest.fixture
    def clock(self):
        return Clock()

    @pytest.fixture
    def store(self, tmp_path, clock):
        return FileStore.from_url(f"file://{tmp_path}/records", {"clock": clock.now_us})

    def write_raw(self, store, key, packed):
        gone_ms = store.now_ms() + 3_600_000
        insert = "REPLACE INTO records VALUES (?, ?, ?)"
        store.rows.operate(lambda at: at.execute(insert, [key, packed, gone_ms]))

    def read_raw(self, store, key):
        found = store.rows.operate(lambda at: store.rows.read(at, key))
        return None if found.stamp is None else found.packed
