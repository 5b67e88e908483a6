"""What preflight of an emergency tells a tired person to type next.
Right: the emergency, with its reason; not a normal rotation."""
from lib import *
k = key()["KeyId"]
t = table(rows=[{"id": {"S": "r"}, "kek_id": {"S": k}, "wrapped_dek": {"B": wrap(k, {"id": "r"})}, "ciphertext": {"B": b"x"}}])
d = Deployment([definition(t)], kek=k)
rc, out = d.run("kms-preflight", "--emergency", "--reason", "key material in a log")
rc, out2 = d.run("kms-preflight", "--label", "Q3 by hand", "--window", "any")
n = [l for l in out.splitlines() if l.startswith("next:")][0]
n2 = [l for l in out2.splitlines() if l.startswith("next:")][0]
verdict("--emergency" in n and "Q3 by hand" in n2, n + " | " + n2)
