"""What slap-fast costs, measured beside its peers. One file a benchmark: `python -m benchmarks [name ...]`.

A benchmark is a module of this package with

    TITLE: str
    def cases(settings: Settings) -> list[Case]

where a `Case` is one workload with a reference, a tolerance and the peers that run it (see `benchmarks.harness.case`).
The command finds it by its file's name.
"""
