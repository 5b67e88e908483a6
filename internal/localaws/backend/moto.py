"""moto_server, with what it needs to execute a state machine twice, and to sign.

moto copies a state machine deeply for each execution, and with it the executions
so far, whose threads and locks cannot be copied: the second StartExecution fails
with status 500. An execution is no part of the copy's definition, so it is shared.

moto's CloudFormation makes every AWS::KMS::Key a symmetric one for encryption,
whatever its KeySpec and KeyUsage are, with a policy that no later call can read:
DescribeKey and Sign then fail with status 500.
"""

import json
import sys

from moto.kms.models import Key, kms_backends
from moto.server import main
from moto.stepfunctions.parser.backend.execution import Execution

Execution.__deepcopy__ = lambda self, memo: self


def create_key(cls, resource_name, cloudformation_json, account_id, region_name, **kwargs):
    p = cloudformation_json["Properties"]
    return kms_backends[account_id][region_name].create_key(
        policy=json.dumps(p["KeyPolicy"]),
        key_usage=p.get("KeyUsage", "ENCRYPT_DECRYPT"),
        key_spec=p.get("KeySpec", "SYMMETRIC_DEFAULT"),
        description=p.get("Description"),
        tags=p.get("Tags", []),
    )


Key.create_from_cloudformation_json = classmethod(create_key)

main(sys.argv[1:])
