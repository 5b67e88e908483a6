"""The item POINTER is gone from the control table: a bad restore, a mistaken delete.
Kind: what looks like a new deployment is an old one that was damaged. Another genesis would set the epoch back to 1.
Right: status does not advise a genesis, and a genesis is refused before the key is tagged, with the old key and another;
with the item back everything goes on."""
from lib import *
k, other = key()["KeyId"], key()["KeyId"]
t = table(rows=[{"id": {"S": "r"}, "kek_id": {"S": k}, "wrapped_dek": {"B": wrap(k, {"id": "r"})}, "ciphertext": {"B": b"x"}}])
d = Deployment([definition(t)], kek=k)
at = {"pk": {"S": "POINTER"}, "sk": {"S": "-"}}
kept = ddb.delete_item(TableName=d.control, Key=at, ReturnValues="ALL_OLD")["Attributes"]
rc, status = d.run("kms-status")
refused = [d.run("kms-genesis", "--kek-id", i, "--confirm") for i in (k, other)]
tags = kms.list_resource_tags(KeyId=other)["Tags"]
ddb.put_item(TableName=d.control, Item=kept)
got, new = d.rotate()
verdict(rc == 0 and "kms-genesis" not in status and "matter ops doctor" in status
        and all(r == 1 and "PointerInvalid" in out for r, out in refused) and not tags and got.get("verify", (9,))[0] == 0,
        f"status {rc}, genesis {[r for r, _ in refused]}, tags {tags}, steps {list(got)}")
