"""One typed request for each use case of the package.

A request is plain data, validated when it is created; importing it loads nothing heavy. Its
docstring starts with the name of the function that executes it, which `amnesia_bench` exports:
`ab.restore(RestoreRequest(...), out)`. The command line, Python callers and pipeline stages all
call these functions.
"""
