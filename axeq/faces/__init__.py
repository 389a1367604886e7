"""What users hold: queues, jobs, leases, tasks and the handler's context."""
