"""`python -m slap_fast`: versions, devices, and which backend serves each op."""

from slap_fast.info import report

print(report())
