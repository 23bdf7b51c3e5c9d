"""The command line: one module per command, each with `run(arguments)` that gives the exit code."""
