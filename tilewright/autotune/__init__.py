"""The search for schedules. Nothing is here yet: `compiler/schedule/default.py` chooses without measuring."""
