"""moto_server, with what it needs to execute a state machine twice.

moto copies a state machine deeply for each execution, and with it the executions
so far, whose threads and locks cannot be copied: the second StartExecution fails
with status 500. An execution is no part of the copy's definition, so it is shared.
"""

import sys

from moto.server import main
from moto.stepfunctions.parser.backend.execution import Execution

Execution.__deepcopy__ = lambda self, memo: self

main(sys.argv[1:])
