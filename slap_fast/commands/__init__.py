"""The commands of `slap-fast`, one a module: `HELP`, `add_arguments(parser)`, and `run(arguments)`, the exit code.

Modules import nothing heavy at their top, so that `slap-fast --help` answers at once.
"""
