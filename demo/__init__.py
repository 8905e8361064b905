"""Worked examples; `python -m demo.read_words` is `make demo`."""
