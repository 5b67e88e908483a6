"""A table is restored to yesterday under another name, and rows under a retired KEK come back
(aws/aws-dynamodb-encryption-java#39). Right: restore-rows says what to enable, then brings back the deleted row under
the KEK in use, overwrites nothing, and the row unwraps with its context."""
import base64
from lib import *
k = key()["KeyId"]
t = table()
src = [definition(t, name="orders", context={"table": "orders", "id": "$id"})]
def dump(rows, path):
    with open(path, "w") as f:
        for r in rows:
            f.write(json.dumps({a: {ty: (base64.b64encode(v).decode() if ty == "B" else v) for ty, v in x.items()} for a, x in r.items()}) + "\n")
for i in range(6):
    c = {"table": "orders", "id": f"r{i}"}
    ddb.put_item(TableName=t, Item={"id": {"S": f"r{i}"}, "kek_id": {"S": k}, "wrapped_dek": {"B": wrap(k, c)}, "ciphertext": {"B": b"x" * 40}, "note": {"S": "old"}})
backup = ddb.scan(TableName=t)["Items"]
d = Deployment(src, kek=k)
got, new = d.rotate()
assert got["verify"][0] == 0
ddb.delete_item(TableName=t, Key={"id": {"S": "r1"}})
ddb.update_item(TableName=t, Key={"id": {"S": "r2"}}, UpdateExpression="SET note = :n", ExpressionAttributeValues={":n": {"S": "new"}})
f = tempfile.mktemp(suffix=".ndjson"); dump(backup, f)
rc1, out1 = d.run("restore-rows", "--source", "orders", "--file", f, "--confirm")
kms.enable_key(KeyId=k)
rc2, out2 = d.run("restore-rows", "--source", "orders", "--file", f, "--confirm")
kms.disable_key(KeyId=k)
r1, r2 = item(t, id={"S": "r1"}), item(t, id={"S": "r2"})
ok = False
if r1:
    ok = len(kms.decrypt(CiphertextBlob=r1["wrapped_dek"]["B"], KeyId=new, EncryptionContext={"table": "orders", "id": "r1"})["Plaintext"]) == 32
verdict(rc1 != 0 and "enable" in out1 and rc2 == 0 and ok and r1["kek_id"]["S"] == new and r2["note"]["S"] == "new", f"{rc1} {rc2} {ok}")
