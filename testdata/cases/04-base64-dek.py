"""Every wrapped DEK is base64 text (type S), as many home-made envelopes keep it.
Kind: an attribute of a type that no row can be rewrapped with must be found before the switch.
Right: the rows are rotated, or preflight refuses with the attribute's name; the pointer has not moved."""
import base64
from lib import *
k = key()["KeyId"]
t = table()
for i in range(20):
    ddb.put_item(TableName=t, Item={"id": {"S": f"r{i}"}, "kek_id": {"S": k}, "wrapped_dek": {"S": base64.b64encode(wrap(k, {"id": f"r{i}"})).decode()}, "ciphertext": {"B": b"x" * 40}})
d = Deployment([definition(t)], kek=k)
d.run("kms-plan"); pre, out = d.run("kms-preflight")
got, new = d.rotate()
switched = d.pointer() != k
done = got.get("verify", (9,))[0] == 0
verdict(done or not switched, f"preflight exit {pre}, switched={switched}, completed={done}")
