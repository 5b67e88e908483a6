"""The KEK in use is a multi-Region key with a policy and a grant of its own; what is the new one?
Kind: the successor of a key must serve everybody whom the old one served (other Regions, other accounts,
grantees), or the rotation must say before the switch that it will not.
Right: the new key has the old one's Region kind, policy and grants, or preflight/dual unwrap/kms-plan names the difference."""
from lib import *
policy = json.dumps({"Version": "2012-10-17", "Statement": [
    {"Sid": "root", "Effect": "Allow", "Principal": {"AWS": "arn:aws:iam::123456789012:root"}, "Action": "kms:*", "Resource": "*"},
    {"Sid": "partner", "Effect": "Allow", "Principal": {"AWS": "arn:aws:iam::210987654321:role/reports"}, "Action": "kms:Decrypt", "Resource": "*"}]})
m = key(MultiRegion=True, Policy=policy)
k = m["KeyId"]
kms.create_grant(KeyId=k, GranteePrincipal="arn:aws:iam::123456789012:role/exporter", Operations=["Decrypt"])
print("old:", k, "MultiRegion", m["MultiRegion"])
t = table()
for i in range(5):
    ddb.put_item(TableName=t, Item={"id": {"S": f"r{i}"}, "kek_id": {"S": k}, "wrapped_dek": {"B": wrap(k, {"id": f"r{i}"})}, "ciphertext": {"B": b"x" * 40}})
d = Deployment([definition(t)], kek=k)
pre, pout = d.run("kms-preflight")
got, new = d.rotate(until="dual")   # the last step before the switch; moto itself cannot unwrap under mrk- keys
n = kms.describe_key(KeyId=new)["KeyMetadata"]
pol = kms.get_key_policy(KeyId=new, PolicyName="default")["Policy"]
grants = kms.list_grants(KeyId=new)["Grants"]
print("new:", new, "MultiRegion", n.get("MultiRegion"), "| partner in policy:", "210987654321" in pol, "| grants:", len(grants))
said = any(w in (pout + "".join(o for _, o in got.values())).lower() for w in ("multi-region", "multiregion", "grant", "policy"))
twin = bool(n.get("MultiRegion")) and "210987654321" in pol and grants
verdict(bool(twin) or said, f"twin={bool(twin)} said anything={said}")
