"""Claim a key for one delivery; undo the claim where the delivery's body does not begin."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final

from celery_idempotent.core.record import RUNNING, Label, Record
from celery_idempotent.core.verdicts import NEVER_MS, Claim, Claimed, ClaimVerdict, Replay
from celery_idempotent.errors import StoreError, StoreUnavailable
from celery_idempotent.run import process
from celery_idempotent.run.claimant import Claimant
from celery_idempotent.run.heartbeat import heartbeat
from celery_idempotent.run.lease import Lease
from celery_idempotent.run.run import Run

_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 0.4


class ClaimAttempt:
    """The claim of one delivery, which can be undone as long as its body has not begun."""

    def __init__(self, claimant: Claimant, on_lost: Callable[[Lease], None]) -> None:
        self._claimant = claimant
        self._on_lost = on_lost
        # By position: names would double what a record takes to make.
        self._candidate = Record(
            RUNNING,
            0,
            0,
            claimant.retries,
            0,
            claimant.owner,
            process.packed,
            os.urandom(8),
            claimant.fingerprint,
            claimant.label,
        )
        #: Whether the key may be held for a body that has not begun: only then it can be undone.
        self.may_hold = False
        self._run: Run | None = None

    def claim(self, patience_s: float) -> ClaimVerdict | Run:
        """Return a :class:`Run` where the key is granted, else the store's verdict.

        In an outage it asks again for ``patience_s`` seconds (with the same nonce: if the first
        request arrived, the answer is the same), then gives up. Where this raises, or the body
        does not begin, the caller has to call :meth:`undo`.

        Raises:
            StoreUnavailable, RecordTooNew: the delivery must wait.
            RecordCorrupt: it must not run.
        """
        claimant, candidate = self._claimant, self._candidate
        terms = claimant.terms
        asked = time.monotonic()
        request = Claim(
            candidate,
            terms.lease_ms,
            terms.keep_ms,
            terms.max_interruptions,
            terms.max_compensations,
            claimant.checked,
            claimant.callbacks,
            claimant.compensates_only,
            claimant.awaited,
            claimant.awaited_key,
            claimant.message,
            claimant.slip_key,
            claimant.is_new,
            claimant.patient_until_ms,
            claimant.refused_from_ms,
            terms.frees,
            terms.in_turn,
            claimant.queued_key,
            terms.latest,
            claimant.came_ms,
            terms.horizon_ms,
        )
        self.may_hold = True
        verdict = _claim(claimant, request, patience_s)
        if isinstance(verdict, Claimed):
            label = claimant.label
            if verdict.origin or verdict.came or verdict.cut_off:
                given = Label.read(label)
                label = given._replace(
                    origin=verdict.origin, came=verdict.came, cut_off=verdict.cut_off
                ).text()
            held = verdict.failed or Record(
                RUNNING,
                verdict.token,
                0,  # until_ms: the store's
                claimant.retries,
                verdict.interruptions,
                claimant.owner,
                candidate.process,
                candidate.nonce,
                claimant.fingerprint,
                label,
                b"",
                bool(verdict.steps),
            )
        else:
            self.may_hold = False
            if not (
                isinstance(verdict, Replay)
                and verdict.mine
                and not verdict.noted
                and not verdict.from_slip
                and claimant.callbacks
            ):
                return verdict
            held = verdict.record
        run = self._run = Run(claimant, held, self._on_lost, asked)
        try:
            heartbeat.add(run.lease)
        except RuntimeError as exc:
            error = StoreUnavailable(
                f"this process can't keep a lease alive, so the body is not run: {exc}"
            )
            error.may_have_arrived = True
            raise error from exc
        if isinstance(verdict, Claimed):
            run.steps = verdict.steps
        else:
            run.replay = verdict
        return run

    def undo(self, why: BaseException) -> bool:
        """Undo what may have been granted for a body that did not begin; was there anything?"""
        if not self.may_hold:
            return False
        self.may_hold = False
        if self._run is not None:
            self._run.let_go()
        claimant, candidate = self._claimant, self._candidate
        terms = claimant.terms

        abandon = partial(terms.store.abandon, claimant.key, candidate, terms.horizon_ms)
        if isinstance(why, StoreError) and not getattr(why, "may_have_arrived", False):
            return True  # the store did not execute it
        if not isinstance(why, StoreUnavailable) or why.__cause__.__class__ is RuntimeError:
            with suppress(StoreUnavailable):
                abandon()
                return True
        heartbeat.later(abandon, f"a claim of {claimant.key} was given up", terms.keep_ms / 1000)
        return True


def claim_key(
    claimant: Claimant, patience_s: float, on_lost: Callable[[Lease], None]
) -> ClaimVerdict | Run:
    """Claim the key, for a caller that begins its body at once: see :meth:`.ClaimAttempt.claim`."""
    attempt = ClaimAttempt(claimant, on_lost)
    try:
        return attempt.claim(patience_s)
    except BaseException as exc:
        attempt.undo(exc)
        raise


def _claim(claimant: Claimant, request: Claim, patience_s: float) -> ClaimVerdict:
    until = time.monotonic() + patience_s
    pause, arrived = _PAUSE_S, False
    while True:
        try:
            store = claimant.terms.store
            if time.monotonic() - store.failed_at < request.lease_ms / 1000:
                request = request._replace(patient_until_ms=NEVER_MS)
            return store.claim(claimant.key, request)
        except StoreUnavailable as exc:
            exc.may_have_arrived = arrived = arrived or exc.may_have_arrived
            if time.monotonic() + pause >= until:
                raise
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_S)
