"""Schedules: the steps and their checks, and the rules that choose them without measuring (`default.py`)."""
