"""Processes forked from one that has imported everything: on slow machines, imports take longer than the tests."""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import ForkServerContext


def fork_server() -> ForkServerContext:
    """The context of Python's fork server, of which a test process has one: the first use of any test starts it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.imported"])
    return context
