"""Thousands of calls under kills, stops and restarts, and a judgement of what the ledger says.

``plan`` makes the traffic and the faults from a seed; ``judgement`` decides from the ``evidence``,
with ``limits`` for what Celery and kombu lose by themselves, and gives an ``account``. All of them
are pure. ``system`` starts, kills and stops processes, ``workload`` is what workers
load, ``driver`` plays a plan, ``report`` shows it, ``__main__`` is the command.
"""
