"""A row that has no room for the two attributes a rewrap adds (400 KB item limit).
Kind: one row that cannot be written must be quarantined under its own name, the others moved.
Right: the row is named by its key, every other row is under the new KEK, the old KEK stays enabled."""
from lib import *
k = key()["KeyId"]
t = table()
def row(i, payload):
    return {"id": {"S": i}, "kek_id": {"S": k}, "wrapped_dek": {"B": wrap(k, {"id": i})}, "ciphertext": {"B": payload}}
for i in range(40):
    ddb.put_item(TableName=t, Item=row(f"r{i:02}", b"x" * 40))
full = row("full", b"")
used = sum(len(a) for a in full) + len("full") + len(k) + len(full["wrapped_dek"]["B"])
full["ciphertext"]["B"] = b"y" * (400 * 1024 - used)
ddb.put_item(TableName=t, Item=full)
d = Deployment([definition(t)], kek=k)
d.run("kms-plan"); d.run("kms-preflight")
got, new = d.rotate()
if not new:  # the census refuses before a KEK is minted; it names the row, and nothing has changed
    rc, out = d.run("census")
    _, keks = d.run("kms-status", quiet=True)
    verdict(rc != 0 and "id=full" in out and d.pointer() == k and "pending" not in keks, f"census exit {rc}")
rc, out = got["rewrap"]
rc2, out2 = d.run("kms-rewrap", "--kek-id", new)
moved = sum(item(t, id={"S": f"r{i:02}"})["kek_id"]["S"] == new for i in range(40))
verdict(rc != 0 and "id=full" in out + out2 and moved == 40, f"named={'id=full' in out + out2} moved={moved}")
