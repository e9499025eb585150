"""Serve many more models than your GPUs can hold, from one Ray cluster, without over-committing a GPU."""
