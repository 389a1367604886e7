"""What is stored: records, payloads, checkpoints; and what the environment sets."""
