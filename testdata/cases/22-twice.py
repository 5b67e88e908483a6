"""The scheduler delivers at least once: the same start twice at once, and again after the first has finished.
Right: at once, one rotates and one is refused without a trace; a late duplicate does not rotate the same quarter again
by itself. Uses the local stack itself."""
from lib import *
arn = os.environ["MATTER_STATE_MACHINE_ARN"]
start = lambda: sfn.start_execution(stateMachineArn=arn, name=str(uuid.uuid4()), input='{"requested_by":"schedule"}')["executionArn"]
def wait(a):
    while (s := sfn.describe_execution(executionArn=a))["status"] == "RUNNING": time.sleep(1)
    return s["status"], s.get("error"), (s.get("cause") or "")[:150]
before = sum(1 for p in kms.get_paginator("list_keys").paginate() for _ in p["Keys"])
a, b = start(), start()
one, two = wait(a), wait(b)
mid = sum(1 for p in kms.get_paginator("list_keys").paginate() for _ in p["Keys"])
late = wait(start())
after = sum(1 for p in kms.get_paginator("list_keys").paginate() for _ in p["Keys"])
print(one, two, "keys made", mid - before); print("late duplicate:", late, "keys made", after - mid)
ok = {one[0], two[0]} == {"SUCCEEDED", "FAILED"} and mid - before == 1
verdict(ok and late[0] != "SUCCEEDED", f"at once {'ok' if ok else 'WRONG'}; late duplicate {late[0]}")
