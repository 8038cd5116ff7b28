"""One typed request for each use case of the package.

A request contains only data, which is validated when the request is created. Importing these
modules imports no heavy packages. The docstring of a request begins with the name of the function
in `amnesia_bench` that executes it, for example `ab.restore(RestoreRequest(...), out)`. The command
line, Python callers and pipeline stages all call these functions.
"""
