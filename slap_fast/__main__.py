"""`python -m slap_fast`: versions, devices, and the backends of each op."""

from slap_fast.commands.info import report

print(report())
