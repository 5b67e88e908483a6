"""The envelope is a map in one attribute ({"enc": {"M": {kek_id, dek, ct}}}), and the configuration names paths into it.
Right: rotated, or refused before the switch with the field's name."""
from lib import *
k = key()["KeyId"]
t = table()
for i in range(10):
    ddb.put_item(TableName=t, Item={"id": {"S": f"r{i}"}, "enc": {"M": {"kek_id": {"S": k}, "dek": {"B": wrap(k, {"id": f"r{i}"})}, "ct": {"B": b"x"}}}})
d = Deployment([{"table": t, "kek_id_attribute": "enc.kek_id", "wrapped_dek_attribute": "enc.dek", "ciphertext_attribute": "enc.ct", "context": {"id": "$id"}}], kek=k)
pre, out = d.run("kms-preflight")
got, new = d.rotate()
verdict(d.pointer() == k or got.get("verify", (9,))[0] == 0, f"preflight {pre}, switched {d.pointer() != k}, {list(got)}")
