"""Payloads sealed by the application's own AES-GCM layout (nonce || ciphertext || tag, no version byte).
A normal rotation never opens them. Kind: a path that is walked once in years must be proven passable before that day.
Right: preflight of an emergency (or any earlier check, or the drill) says that payloads do not open; or the emergency
moves the rows off the compromised KEK in some way."""
from lib import *
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
k = key()["KeyId"]
t = table()
for i in range(20):
    a = kms.generate_data_key(KeyId=k, KeySpec="AES_256", EncryptionContext={"id": f"r{i}"})
    n = os.urandom(12)
    ddb.put_item(TableName=t, Item={"id": {"S": f"r{i}"}, "kek_id": {"S": k}, "wrapped_dek": {"B": a["CiphertextBlob"]}, "ciphertext": {"B": n + AESGCM(a["Plaintext"]).encrypt(n, b"secret", None)}})
d = Deployment([definition(t)], kek=k)
_, plan = d.run("kms-plan", "--emergency", "--reason", "x")
pre, pout = d.run("kms-preflight", "--emergency", "--reason", "x")
got, new = d.rotate("burnt", "--emergency", "--reason", "key material in a log")
moved = sum(item(t, id={"S": f"r{i}"})["kek_id"]["S"] == new for i in range(20))
verdict(pre != 0 or "payload" in plan + pout or moved == 20, f"preflight {pre}, moved {moved} of 20")
