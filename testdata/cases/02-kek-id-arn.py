"""Rows whose KEK id is the key's ARN, as GenerateDataKey answers it in KeyId.
Kind: a form of the same key that the rotation does not understand must be found before the switch.
Right: either the rows are rotated, or preflight (or dual unwrap) refuses before the pointer moves."""
from lib import *
m = key()
t = table()
for i in range(20):
    ctx = {"id": f"r{i}"}
    a = kms.generate_data_key(KeyId=m["KeyId"], KeySpec="AES_256", EncryptionContext=ctx)
    ddb.put_item(TableName=t, Item={"id": {"S": f"r{i}"}, "kek_id": {"S": a["KeyId"]}, "wrapped_dek": {"B": a["CiphertextBlob"]}, "ciphertext": {"B": b"x" * 40}})
print("kek_id in the rows:", a["KeyId"])
d = Deployment([definition(t)], kek=m["KeyId"])
d.run("kms-plan"); pre, _ = d.run("kms-preflight")
got, new = d.rotate()
switched = d.pointer() != m["KeyId"]
done = got.get("verify", (9,))[0] == 0
verdict(done or not switched, f"preflight exit {pre}, switched={switched}, completed={done}")
