"""The harness: brokers, workers, a ledger of what really happened, and ways to wait for it."""
