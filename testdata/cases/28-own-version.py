"""The application keeps an attribute "version" of its own (the format of its payload, 2), and the configuration is the
one of the README, which names no version_attribute. Kind: a default that writes into somebody else's attribute.
Right: the application's value is the same after the rotation, or preflight refuses and names the attribute."""
from lib import *
k = key()["KeyId"]
bad = []
for value in ({"N": "2"}, {"S": "v2"}):
    t = table()
    for i in range(5):
        ddb.put_item(TableName=t, Item={"id": {"S": f"r{i}"}, "kek_id": {"S": k}, "wrapped_dek": {"B": wrap(k, {"id": f"r{i}"})}, "ciphertext": {"B": b"x" * 40}, "version": value})
    d = Deployment([definition(t)], kek=k)
    pre, out = d.run("kms-preflight")
    if pre and "version" in out: continue
    got, new = d.rotate()
    after = item(t, id={"S": "r0"})["version"]
    print("before", value, "after", after, "steps", list(got))
    if after != value: bad.append(f"{value} became {after}")
    if got.get("verify", (9,))[0] and d.pointer() != k: bad.append(f"{value}: halted after the switch")
    kms.enable_key(KeyId=k)
verdict(not bad, "; ".join(bad))
