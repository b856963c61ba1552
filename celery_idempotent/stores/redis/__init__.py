"""Records on Redis, Valkey, Sentinel and Redis Cluster."""
