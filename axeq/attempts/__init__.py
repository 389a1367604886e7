"""One attempt at a job: its handler, its lease, its hooks, its outcome."""
