"""Half of the rows are older than the kek_id attribute: a wrapped DEK and no KEK id (the key was the only one there was).
Kind: rows that the rotation cannot place must be found before the switch, or be adopted.
Right: refused before the pointer moves, or rotated."""
from lib import *
k = key()["KeyId"]
t = table()
for i in range(40):
    r = {"id": {"S": f"r{i}"}, "wrapped_dek": {"B": wrap(k, {"id": f"r{i}"})}, "ciphertext": {"B": b"x" * 40}}
    if i % 2: r["kek_id"] = {"S": k}
    ddb.put_item(TableName=t, Item=r)
d = Deployment([definition(t)], kek=k)
d.run("kms-plan"); pre, _ = d.run("kms-preflight")
got, new = d.rotate()
refused = d.pointer() == k and not new
# Adopted, they are rotated with the others.
dry, out = d.run("adopt", "--source", t)
there = sum("kek_id" in item(t, id={"S": f"r{i}"}) for i in range(40))
adopted, _ = d.run("adopt", "--source", t, "--confirm")
got, new = d.rotate("adopted")
moved = sum(item(t, id={"S": f"r{i}"})["kek_id"]["S"] == new for i in range(40))
verdict(refused and dry == 0 and there == 20 and adopted == 0 and got.get("verify", (9,))[0] == 0 and moved == 40,
        f"preflight {pre}, refused {refused}, labelled by a dry run {there - 20}, moved {moved}")
