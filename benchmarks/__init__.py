"""Benchmarks of slap-fast against its peers, one file per benchmark: `python -m benchmarks [name ...]`.

A benchmark is a module of this package with

    TITLE: str
    def cases(settings: Settings) -> list[Case]

where a `Case` is one workload with a reference, a tolerance and peers (see `benchmarks.harness.case`). The command
finds a benchmark by its file name.
"""
