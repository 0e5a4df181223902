"""Suites: several public benchmarks in one run, in one table beside the published numbers.

Begin with running.py (`run_suite`). paper.py has the tasks and numbers of the paper, discovery.py finds the datasets
below a folder, report.py writes the table.
"""

from slap_fast.evaluation.suite.discovery import FoundDataset, find_datasets
from slap_fast.evaluation.suite.paper import PAPER, SUITES, Task
from slap_fast.evaluation.suite.running import SuiteResult, run_suite

__all__ = ["PAPER", "SUITES", "FoundDataset", "SuiteResult", "Task", "find_datasets", "run_suite"]
