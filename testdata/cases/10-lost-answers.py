"""An UpdateItem takes effect, its answer is lost, the SDK repeats it and the condition fails (aws/aws-sdk-java#2667).
Right: the rewrap finds its own write and finishes; the rows unwrap."""
from lib import *
k = key()["KeyId"]
t = table()
for i in range(60):
    ddb.put_item(TableName=t, Item={"id": {"S": f"r{i:02}"}, "kek_id": {"S": k}, "wrapped_dek": {"B": wrap(k, {"id": f"r{i:02}"})}, "ciphertext": {"B": b"x" * 40}})
d = Deployment([definition(t, version_attribute="version")], kek=k)
got, new = d.rotate(until="drain")
faults("POST", {"service": "dynamodb", "operation": "UpdateItem", "nth": 3, "times": 5, "mode": "drop-response"})
faults("POST", {"service": "kms", "operation": "ReEncrypt", "nth": 10, "times": 8, "mode": "throttle"})
rc, out = d.run("kms-rewrap", "--kek-id", new)
print(faults("GET")); faults("DELETE")
bad = 0
for i in range(60):
    r = item(t, id={"S": f"r{i:02}"})
    try:
        kms.decrypt(CiphertextBlob=r["wrapped_dek"]["B"], KeyId=new, EncryptionContext={"id": f"r{i:02}"})
    except Exception as e:
        bad += 1
    bad += r["version"]["N"] != "1"
verdict(rc == 0 and bad == 0, f"exit {rc} bad {bad}")
