"""Helpers that server, race and acceptance tests share."""
