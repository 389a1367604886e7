"""Processes and terminals: the command line, the demo, the keeper of an embedded server."""
