"""The intermediate representations: types, graph, operators, tensor programs, and their NumPy meaning. Imports nothing above it."""
