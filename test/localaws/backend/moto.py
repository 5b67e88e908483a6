"""moto_server, with what it needs to execute a state machine twice, to sign, and to
unwrap under multi-Region keys.

moto copies a state machine deeply for each execution, and with it the executions
so far, whose threads and locks cannot be copied: the second StartExecution fails
with status 500. An execution is no part of the copy's definition, so it is shared.

moto's CloudFormation makes every AWS::KMS::Key a symmetric one for encryption,
whatever its KeySpec and KeyUsage are, with a policy that no later call can read:
DescribeKey and Sign then fail with status 500.

moto's ids of multi-Region keys are "mrk-" and a UUID, 40 letters, of which its
ciphertexts keep 36: none can be unwrapped. AWS's are "mrk-" and 32 digits (KMS
developer guide, "How multi-Region keys work"), which fit.

moto answers GetExecutionHistory with all events in order, whatever is asked for.

The rest makes moto start and answer faster. For each request moto lists the directory
of its services while it holds a lock and the methods of a class, Flask prepares an error
of forms, and Werkzeug begins a thread and closes the connection: waitress keeps both.
For each service moto reads megabytes of API model for the names of the regions, which
are those of STS here. It reads JSON templates as YAML, and parses a state machine when it
is made as well as when it is started, which takes it 0.2 s.
"""

import argparse
import functools
import json
import re

import boto3.session
import flask.debughelpers
import waitress

available_regions = functools.cache(
    functools.partial(boto3.session.Session().get_available_regions, "sts")
)
boto3.session.Session.get_available_regions = (
    lambda self, service_name, partition_name="aws", allow_non_regional=False: list(
        available_regions(partition_name)
    )
)

from moto.cloudformation.models import Stack
from moto.core import responses
from moto.core.responses import ActionResult
from moto.kms import models
from moto.kms.models import Key, kms_backends
from moto.kms.responses import KmsResponse
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.stepfunctions.parser.backend.execution import Execution
from moto.stepfunctions.parser.models import StepFunctionsParserBackend
from moto.stepfunctions.responses import StepFunctionResponse

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

generate_key_id, validate_cmk_id = models.generate_key_id, KmsResponse._validate_cmk_id


def multi_region_key_id(multi_region=False):
    key_id = generate_key_id()
    return "mrk-" + key_id.replace("-", "") if multi_region else key_id


def validate_multi_region_key_id(self, key_id):
    if re.fullmatch("mrk-[0-9a-f]{32}", key_id):
        key_id = self._display_arn(key_id)  # ARNs of any form are looked for
    validate_cmk_id(self, key_id)


models.generate_key_id = multi_region_key_id
KmsResponse._validate_cmk_id = validate_multi_region_key_id


def get_execution_history(self):
    history = self.stepfunction_backend.get_execution_history(self._get_param("executionArn"))
    events, last = list(history["events"]), self._get_param("nextToken")
    if reverse := self._get_param("reverseOrder"):
        events.reverse()
    if last:
        events = [e for e in events if (e["id"] < int(last) if reverse else e["id"] > int(last))]
    page = events[: self._get_param("maxResults") or 100]
    out = {"events": page}
    if len(page) < len(events):
        out["nextToken"] = str(page[-1]["id"])
    return ActionResult(out)


StepFunctionResponse.get_execution_history = get_execution_history
DomainDispatcherApplication.get_backend_for_host = functools.cache(
    DomainDispatcherApplication.get_backend_for_host
)
Stack.parse_template = staticmethod(json.loads)
StepFunctionsParserBackend._validate_definition = staticmethod(lambda definition: None)
responses.method_names_from_class = functools.cache(responses.method_names_from_class)
flask.debughelpers.attach_enctype_error_multidict = lambda request: None

arguments = argparse.ArgumentParser()
arguments.add_argument("-H", "--host")
arguments.add_argument("-p", "--port", type=int)
waitress.serve(
    DomainDispatcherApplication(create_backend_app),
    **vars(arguments.parse_args()),
    threads=64,  # states of an execution wait in some, for what others answer
    ident="moto",
)
