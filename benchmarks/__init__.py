"""Measurements: what this machine can do, and how near Tilewright comes to it."""
