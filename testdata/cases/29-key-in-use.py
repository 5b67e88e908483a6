"""The KEK in use also serves others: a grant as RDS or EBS makes it, and a bucket that is encrypted with it.
Kind: "what still uses the old key?"; retiring disables it for everybody.
Right: before the switch, or at the retirement, the operator is told that grants (or others) hang on the key."""
from lib import *
k = key()["KeyId"]
kms.create_grant(KeyId=k, GranteePrincipal="arn:aws:iam::123456789012:role/aws-service-role/rds", Operations=["Decrypt", "Encrypt"])
b = "b" + uuid.uuid4().hex
s3.create_bucket(Bucket=b, CreateBucketConfiguration={"LocationConstraint": os.environ["AWS_REGION"]})
s3.put_bucket_encryption(Bucket=b, ServerSideEncryptionConfiguration={"Rules": [{"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": k}}]})
t = table(rows=[{"id": {"S": "r"}, "kek_id": {"S": k}, "wrapped_dek": {"B": wrap(k, {"id": "r"})}, "ciphertext": {"B": b"x"}}])
d = Deployment([definition(t)], kek=k)
_, plan = d.run("kms-plan"); pre, pout = d.run("kms-preflight")
got, new = d.rotate()
said = "grant" in (plan + pout + "".join(o for _, o in got.values())).lower()
state = kms.describe_key(KeyId=k)["KeyMetadata"]["KeyState"]
verdict(said or state == "Enabled", f"old key {state}, grants {len(kms.list_grants(KeyId=k)['Grants'])}, told: {said}")
