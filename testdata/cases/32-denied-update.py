"""The rewrap function may not call UpdateItem on the tables (a resource policy, an SCP, a list of ARNs one short).
Kind: a permission that only a step after the switch needs must be proven before it.
Right: the execution is refused or rolled back, the pointer has not moved. Uses the local stack itself."""
from lib import *
arn = os.environ["MATTER_STATE_MACHINE_ARN"]; control = os.environ["MATTER_CONTROL_TABLE"]
def pointer(): return ddb.get_item(TableName=control, Key={"pk": {"S": "POINTER"}, "sk": {"S": "-"}})["Item"]["kek_id"]["S"]
faults("POST", {"service": "dynamodb", "operation": "UpdateItem", "function": "rewrap", "nth": 1, "times": 100000, "mode": "error", "error_code": "AccessDeniedException", "status": 400})
old = pointer()
a = sfn.start_execution(stateMachineArn=arn, name="x" + uuid.uuid4().hex, input='{"requested_by":"schedule","label":"case 32"}')["executionArn"]
t0 = time.time()
while (s := sfn.describe_execution(executionArn=a))["status"] == "RUNNING" and time.time() - t0 < 1500: time.sleep(2)
print(s["status"], s.get("error"), (s.get("cause") or "")[:900]); print(faults("GET")); faults("DELETE")
verdict(pointer() == old, f"{s['status']} {s.get('error')}, switched {pointer() != old}")
