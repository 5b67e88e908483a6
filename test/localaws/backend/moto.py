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

moto runs the items of a distributed Map within the execution: what they do is in no history,
and an item that fails makes the map's output shorter and nothing else. Here each item is a child
execution with a history and an input of its own, under the ARN that its label gives it; one
that fails fails the map run with States.ExceedToleratedFailureThreshold, which stops the others
(developer guide, "Using Map state in Distributed mode for large-scale parallel workloads in
Step Functions" and "Tolerated failure threshold for Distributed Map state").

The rest makes moto start and answer faster. For each request moto lists the directory
of its services while it holds a lock and the methods of a class, Flask prepares an error
of forms, and Werkzeug begins a thread and closes the connection: waitress keeps both.
For each service moto reads megabytes of API model for the names of the regions, which
are those of STS here. It reads JSON templates as YAML, copies each version of each object
deeply to list them, and parses a state machine when it is made and whenever it is started.

What takes 2 s is done once for all servers of a process: with --fork-at this is no server, but
forks one for each connection to that socket, which names the port and carries its output.
A server ends with its connection, and this program with its standard input.
"""

import argparse
import copy
import datetime
import functools
import json
import os
import random
import re
import select
import signal
import socket
import sys
import threading
import types
import uuid

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

from moto.backends import get_backend
from moto.cloudformation.models import Stack
from moto.core import responses
from moto.core.responses import ActionResult
from moto.core.utils import get_service_model
from moto.kms import models
from moto.kms.models import Key, kms_backends
from moto.kms.responses import KmsResponse
from moto.moto_api._internal import mock_random
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.s3 import models as s3_models
from moto.stepfunctions.parser.api import (
    ExecutionStatus,
    HistoryEventType,
    MapRunFailedEventDetails,
    StateMachineType,
)
from moto.stepfunctions.parser.asl.component.common.error_name.failure_event import (
    FailureEvent,
    FailureEventException,
)
from moto.stepfunctions.parser.asl.component.common.error_name.states_error_name import (
    StatesErrorName,
)
from moto.stepfunctions.parser.asl.component.common.error_name.states_error_name_type import (
    StatesErrorNameType,
)
from moto.stepfunctions.parser.asl.component.state.exec.state_map.iteration.distributed_iteration_component import (
    DistributedIterationComponent,
)
from moto.stepfunctions.parser.asl.eval.event.event_detail import EventDetails
from moto.stepfunctions.parser.asl.eval.states import ItemData, MapData
from moto.stepfunctions.parser.asl.parse.asl_parser import AmazonStateLanguageParser
from moto.stepfunctions.parser.backend.execution import Execution, SyncExecution
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
    out = {"events": [told(self, e) for e in page]}
    if len(page) < len(events):
        out["nextToken"] = str(page[-1]["id"])
    return json.dumps(out)


def told(self, event):
    """An event in JSON. moto takes 0.3 ms for one, and every call asks for all of them again."""
    known = serialized_events.setdefault(self._get_param("executionArn"), {})
    was, text = known.get(event["id"], (None, None))
    if was != event:  # a stack that is made again has executions of the same ARN
        _, _, body = self.serialized(ActionResult({"events": [event]}))
        text = json.loads(body)["events"][0]
        known[event["id"]] = event, text
    return text


serialized_events = {}  # by ARN of the execution and id: an event, and its JSON


StepFunctionResponse.get_execution_history = get_execution_history


class Child(SyncExecution):
    """An execution of one item of a distributed Map."""

    def __init__(self, env, record, program, item):
        details, name = env.aws_execution_details, str(uuid.uuid4())
        arn = record.map_state_machine_arn
        super().__init__(
            name=name,
            sm_type=StateMachineType.STANDARD,
            role_arn=details.role_arn,
            exec_arn=arn.replace(":stateMachine:", ":execution:") + ":" + name,
            account_id=details.account,
            region_name=details.region,
            state_machine=types.SimpleNamespace(
                arn=arn, name=arn.rsplit(":", 1)[1], sm_type=StateMachineType.STANDARD, definition=None
            ),
            start_date=now(),
            cloud_watch_logging_session=None,
            activity_store=env.activity_store,
            input_data=json.dumps(item),
        )
        self.program, self.map_run_arn = program, record.map_run_arn

    def _get_start_execution_worker(self):
        worker = super()._get_start_execution_worker()
        worker._get_evaluation_entrypoint = lambda: self.program  # parsed with the parent
        return worker


def now():
    return datetime.datetime.now(tz=datetime.timezone.utc)


children = {}  # by ARN


def item_input(env, selector, index, item):
    """The input of a child execution: the item, or what ItemSelector makes of it."""
    if selector is None:
        return item
    frame = env.open_inner_frame()
    frame.states.context_object.context_object_data["Map"] = MapData(
        Item=ItemData(Index=index, Value=item)
    )
    frame.states.reset(input_value=env.states.get_input())
    frame.stack.append(frame.states.get_input())
    selector.eval(frame)
    env.delete_frame(frame)
    return frame.stack.pop()


def map_run(self, env, eval_input):
    record, program = eval_input.map_run_record, self._get_iteration_program()
    waiting = [
        Child(env, record, program, item_input(env, eval_input.item_selector, i, item))
        for i, item in enumerate(env.stack.pop())
    ]
    counts = record.execution_counter
    counts.total.count(len(waiting))
    run, todo, ended = list(waiting), threading.Condition(), []
    waiting.reverse()

    def work():
        while True:
            with todo:
                if not waiting:
                    return
                child = waiting.pop()
                children[child.exec_arn] = child
            child.start_date = now()
            child.start()  # returns when it has ended
            with todo:
                ended.append(child)
                if child.exec_status != ExecutionStatus.SUCCEEDED:
                    waiting.clear()  # before the next item can begin
                todo.notify()

    for _ in range(min(record.max_concurrency or len(run), len(run))):
        threading.Thread(target=work, daemon=True).start()
    failed = None
    with todo:
        while env.is_running() and failed is None and len(ended) < len(run):
            todo.wait(0.1)
            failed = next((c for c in ended if c.exec_status != ExecutionStatus.SUCCEEDED), None)
        waiting.clear()
        for child in run:
            if child not in ended and child.exec_worker is not None and child.exec_worker.env:
                child.stop(now(), None, None)
        counts.succeeded.count(sum(c.exec_status == ExecutionStatus.SUCCEEDED for c in ended))
        counts.failed.count(failed is not None)
    if failed is not None:
        name = StatesErrorName(typ=StatesErrorNameType.StatesExceedToleratedFailureThreshold)
        raise FailureEventException(
            FailureEvent(
                env=env,
                error_name=name,
                event_type=HistoryEventType.MapRunFailed,
                event_details=EventDetails(
                    mapRunFailedEventDetails=MapRunFailedEventDetails(
                        error=name.error_name,
                        cause="The specified tolerated failure threshold was exceeded",
                    )
                ),
            )
        )
    env.stack.append([c.output for c in run])


DistributedIterationComponent._map_run = map_run


def or_child(find):
    return lambda self, execution_arn: children.get(execution_arn) or find(self, execution_arn)


StepFunctionsParserBackend.describe_execution = or_child(StepFunctionsParserBackend.describe_execution)
list_executions = StepFunctionResponse.list_executions


def list_executions_or_children(self):
    if (arn := self._get_param("mapRunArn")) is None:
        return list_executions(self)
    status = self._get_param("statusFilter")
    found = [c for c in list(children.values()) if c.map_run_arn == arn]
    return ActionResult(
        {
            "executions": [
                {"executionArn": c.exec_arn, "name": c.name, "mapRunArn": arn, "startDate": c.start_date,
                 "stateMachineArn": c.state_machine_arn, "status": c.status}
                for c in found
                if c.exec_status and status in (None, c.status)
            ]
        }
    )


StepFunctionResponse.list_executions = list_executions_or_children
DomainDispatcherApplication.get_backend_for_host = functools.cache(
    DomainDispatcherApplication.get_backend_for_host
)
Stack.parse_template = staticmethod(json.loads)
AmazonStateLanguageParser.parse = staticmethod(functools.cache(AmazonStateLanguageParser.parse))
StepFunctionsParserBackend._validate_definition = staticmethod(lambda definition: None)
s3_models.copy = types.SimpleNamespace(copy=copy.copy, deepcopy=list)  # of the versions of a key
responses.method_names_from_class = functools.cache(responses.method_names_from_class)
flask.debughelpers.attach_enctype_error_multidict = lambda request: None


def serve(port):
    waitress.serve(
        DomainDispatcherApplication(create_backend_app),
        host="127.0.0.1",
        port=port,
        threads=64,  # states of an execution wait in some, for what others answer
        ident="moto",
    )


def serve_while(connection, port, callback_port, output):
    """What a forked process does: serve, as long as the connection is open."""

    def follow():
        connection.recv(1)
        os._exit(0)

    threading.Thread(target=follow, daemon=True).start()
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ["MOTO_PORT"] = callback_port
    random.seed()
    mock_random.seed()  # else all servers make the same ids
    serve(int(port))


def fork_at(address, state_machine):
    for service in ("cloudformation", "iam", "kms", "lambda", "s3", "sns", "sts", "stepfunctions", "scheduler"):
        get_backend(service)
        get_service_model(service)
    if state_machine:
        with open(state_machine) as f:
            AmazonStateLanguageParser.parse(f.read())  # its tables are filled as it parses
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address.replace("@", "\0", 1))
    listener.listen()
    print("listening", flush=True)
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:  # it is never written to
            return
        connection, _ = listener.accept()
        ports, (output,), _, _ = socket.recv_fds(connection, 64, 1)
        if os.fork() == 0:
            listener.close()
            serve_while(connection, *ports.decode().split(), output)
            os._exit(1)
        connection.close()
        os.close(output)


arguments = argparse.ArgumentParser()
arguments.add_argument("-H", "--host")
arguments.add_argument("-p", "--port", type=int)
arguments.add_argument("--fork-at", metavar="ADDRESS")
arguments.add_argument("--state-machine", metavar="FILE", help="what servers will parse")
given = arguments.parse_args()
if given.fork_at:
    fork_at(given.fork_at, given.state_machine)
else:
    serve(given.port)
