"""What happens in a worker's parent process: its requests, and its start."""
