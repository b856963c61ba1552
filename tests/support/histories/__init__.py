"""Histories: what workers, brokers and callers did, as operations, and whether it was right.

``operations`` says what can be in a history, ``checker`` judges it by the contract. Neither shares
code with the library. Random schedules and chaos make histories.
"""
