"""Which jobs are due: what a pool has read, heard and left to others."""
