"""Case 3, corrected: the configuration is corrected after the halt and the rotation goes on.
Right: rewrap, retire and verify succeed with the corrected context; nothing is lost."""
from lib import *
k = key()["KeyId"]
t = table()
for i in range(20):
    ddb.put_item(TableName=t, Item={"id": {"S": f"r{i}"}, "kek_id": {"S": k}, "wrapped_dek": {"B": wrap(k, {"order_id": f"r{i}"})}, "ciphertext": {"B": b"x" * 40}})
src = lambda c: definition(t, context={c: "$id"})
d = Deployment([src("id")], kek=k)
got, new = d.rotate()                 # the rehearsal notices before the switch, and the definition is corrected
refused = d.pointer() == k and got["dual"][0] == 1
d.run("kms-retire-kek", "--rotation", "case", "--reason", "wrong context", "--confirm")
added, _ = d.add(src("order_id"))
got, new = d.rotate("second", until="drain")
old = k
d.add(src("id"))                      # after the switch a definition may change, for better or worse
halted, _ = d.run("kms-rewrap", "--kek-id", new)
d.add(src("order_id"))
rcs = [d.run(*a)[0] for a in (("kms-rewrap", "--kek-id", new), ("kms-retire-kek", "--kek-id", old, "--confirm"), ("verify-kms-rotation", "--new-kek-id", new))]
opens = sum(len(kms.decrypt(CiphertextBlob=item(t, id={"S": f"r{i}"})["wrapped_dek"]["B"], KeyId=new, EncryptionContext={"order_id": f"r{i}"})["Plaintext"]) == 32 for i in range(20))
verdict(refused and added == 0 and halted == 1 and rcs == [0, 0, 0] and opens == 20, f"refused {refused}, added {added}, halted {halted}, then {rcs}, {opens} open")
