"""Random schedules of real deliveries: crashes, copies, stalls and lost answers, in one process.

The library's own code runs: task, delivery, run, heartbeat, transitions, the store in memory.
Clock, processes, broker and result backend are simulated. ``world`` has the clock and the
processes, ``system`` the broker, the workers and the store as a process sees it, ``app`` the tasks,
``play`` draws a schedule from a seed and plays it. What happened is a history of operations, which
``tests.support.histories`` judges.
"""
