"""Entry point of `python -m benchmarks [name ...]`, `python -m benchmarks plot` and `... readme [--check]`."""

from __future__ import annotations

from benchmarks.harness.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
