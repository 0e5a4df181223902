"""`python -m slap_fast`: the command line; without a command, `slap-fast info`."""

import sys

from slap_fast.cli import main

sys.exit(main(sys.argv[1:] or ["info"]))
