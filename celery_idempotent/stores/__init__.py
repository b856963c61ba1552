"""Where records live: each module knows one technology."""
