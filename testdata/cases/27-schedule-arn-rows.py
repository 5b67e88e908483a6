"""End to end, unattended: the rows of one shipped table name their KEK by ARN; the schedule's start; then an emergency.
Uses the local stack itself.
Right: the first start is refused before the switch (or succeeds), and an emergency can be started afterwards."""
from lib import *
arn, emergencies = os.environ["MATTER_STATE_MACHINE_ARN"], os.environ["MATTER_EMERGENCY_STATE_MACHINE_ARN"]
control = os.environ["MATTER_CONTROL_TABLE"]
src = next(s for s in json.loads(os.environ["MATTER_SOURCES"]) if s["name"] == "symbols")
def pointer(): return ddb.get_item(TableName=control, Key={"pk": {"S": "POINTER"}, "sk": {"S": "-"}})["Item"]["kek_id"]["S"]
old = pointer(); full = kms.describe_key(KeyId=old)["KeyMetadata"]["Arn"]
hk = [k["AttributeName"] for k in ddb.describe_table(TableName=src["table"])["Table"]["KeySchema"]]
n = 0
for page in ddb.get_paginator("scan").paginate(TableName=src["table"]):
    for r in page["Items"]:
        if r.get(src["kek_id_attribute"], {}).get("S") == old:
            ddb.update_item(TableName=src["table"], Key={k: r[k] for k in hk}, UpdateExpression="SET #k = :a", ExpressionAttributeNames={"#k": src["kek_id_attribute"]}, ExpressionAttributeValues={":a": {"S": full}}); n += 1
print(n, "rows now name", full)
def run(inp, machine=arn):
    a = sfn.start_execution(stateMachineArn=machine, name="x" + uuid.uuid4().hex, input=json.dumps(inp))["executionArn"]
    while (s := sfn.describe_execution(executionArn=a))["status"] == "RUNNING": time.sleep(2)
    print(inp, "->", s["status"], s.get("error"), (s.get("cause") or "")[:500]); return s
one = run({"requested_by": "schedule", "label": "case 27"})
between = pointer()
switched = between != old
two = run({"mode": "emergency", "reason": "key material in a log"}, emergencies)
verdict((one["status"] == "SUCCEEDED" or not switched) and pointer() != between, f"first {one['status']} {one.get('error')}, switched {switched}; emergency {two['status']} {two.get('error')}")
