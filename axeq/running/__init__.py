"""Pools: how many attempts, of which jobs, from the start to the end."""
