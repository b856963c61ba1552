"""How fast it is: every goal as a ratio, measured side by side in one run on one private server."""
