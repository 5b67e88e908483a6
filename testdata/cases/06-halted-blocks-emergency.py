"""A normal rotation has halted after its switch on a row that it cannot move, and now a key is compromised.
Right: an emergency starts at once. It ends the other rotation, the pointer leaves both KEKs, and every
row that can be moved is."""
from lib import *
k = key()["KeyId"]
t = table(rows=[{"id": {"S": f"r{i}"}, "kek_id": {"S": k}, "wrapped_dek": {"B": wrap(k, {"id": f"r{i}"})}, "ciphertext": {"B": b"x" * 40}} for i in range(10)])
d = Deployment([definition(t, payloads="opaque")], kek=k)
got, new = d.rotate(until="drain")
ddb.put_item(TableName=t, Item={"id": {"S": "odd"}, "kek_id": {"S": "key-of-another-team"}, "wrapped_dek": {"B": b"?"}, "ciphertext": {"B": b"x" * 40}})
rc, out = d.run("kms-rewrap", "--kek-id", new)
assert rc != 0, "the row was moved"
d.run("kms-preflight", "--emergency", "--reason", "key material in a log")
emergency = ("--emergency", "--reason", "key material in a log")
got, burnt = d.rotate("burnt", *emergency, until="rewrap")
moved = sum(item(t, id={"S": f"r{i}"})["kek_id"]["S"] == burnt for i in range(10))
rc, out = d.run("kms-rewrap", "--kek-id", new)
d.run("kms-status")
verdict(burnt and d.pointer() == burnt and got["rewrap"][0] != 0 and "odd" in got["rewrap"][1] and moved == 10 and rc != 0 and "superseded" in out.lower(),
        f"the emergency moved {moved} of 10 rows; the pointer is on {d.pointer()}")
