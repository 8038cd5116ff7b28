"""What can be asked of this package: one typed request for each use case.

A request is plain data, checked when it is made; it imports nothing heavy. The function that
answers it has the name in its docstring and is exported by `amnesia_bench`: `ab.restore(
RestoreRequest(...), out)`. The command line, Python and the stages of the pipeline all enter there.
"""
