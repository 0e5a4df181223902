"""The commands of `slap-fast`, one per module: `HELP`, `add_arguments(parser)`, and `run(arguments)`, the exit code.

Heavy imports are inside functions, so that `slap-fast --help` and errors in the arguments are immediate.
"""
