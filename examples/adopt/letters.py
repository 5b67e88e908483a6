"""Rows that were written without this project: each payload is encrypted by KMS itself, under one key, and nothing in
the row says which. Writes them, or reads them back and compares.

    letters.py write --table letters --key-id KEY --rows 40
    letters.py check --table letters --rows 40
"""
import argparse
import boto3


def text(n):
    return f"letter {n} of the days before: kept as KMS gave it out".encode()


def context(n):
    return {"table": "letters", "id": f"letter-{n:03}"}


p = argparse.ArgumentParser()
p.add_argument("what", choices=("write", "check"))
p.add_argument("--table", required=True)
p.add_argument("--key-id")
p.add_argument("--rows", type=int, required=True)
a = p.parse_args()
kms, ddb = boto3.client("kms"), boto3.client("dynamodb")
good = 0
for n in range(a.rows):
    key = {"id": {"S": context(n)["id"]}}
    if a.what == "write":
        body = kms.encrypt(KeyId=a.key_id, Plaintext=text(n), EncryptionContext=context(n))["CiphertextBlob"]
        ddb.put_item(TableName=a.table, Item={**key, "body": {"B": body}, "from": {"S": "somebody"}})
        good += 1
        continue
    row = ddb.get_item(TableName=a.table, Key=key, ConsistentRead=True).get("Item", {})
    plain = kms.decrypt(CiphertextBlob=row["body"]["B"], EncryptionContext=context(n))["Plaintext"]
    good += plain == text(n) and row["from"]["S"] == "somebody"
print(f"{good} of {a.rows}")
raise SystemExit(good != a.rows)
