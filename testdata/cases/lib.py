"""Helper of the case scripts: a deployment of its own (control table, locked bucket,
KEK, tables) on a running local AWS, and the operator's commands by hand.

Run a case:   make build venv dynoxide && bin/matter-local up --detach
              . .local/env && .venv/bin/python testdata/cases/NN-name.py
$MATTER_BIN names another binary than bin/matter."""
import json, os, subprocess, sys, tempfile, time, uuid
import boto3

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
MATTER = os.environ.get("MATTER_BIN") or os.path.join(ROOT, "bin", "matter")
ddb, kms, s3, sfn = (boto3.client(n) for n in ("dynamodb", "kms", "s3", "stepfunctions"))


def key(**more):
    return kms.create_key(KeySpec="SYMMETRIC_DEFAULT", KeyUsage="ENCRYPT_DECRYPT", **more)["KeyMetadata"]


def table(schema=(("id", "S"),), rows=(), name=None):
    name = name or "t-" + uuid.uuid4().hex[:10]
    ddb.create_table(
        TableName=name, BillingMode="PAY_PER_REQUEST",
        AttributeDefinitions=[{"AttributeName": a, "AttributeType": t} for a, t in schema],
        KeySchema=[{"AttributeName": a, "KeyType": k} for (a, _), k in zip(schema, ("HASH", "RANGE"))])
    for r in rows:
        ddb.put_item(TableName=name, Item=r)
    return name


def wrap(kek, ctx):
    return kms.generate_data_key(KeyId=kek, KeySpec="AES_256", EncryptionContext=ctx)["CiphertextBlob"]


def definition(table_, **more):
    """What the README's example registers a table with, by the id of a row."""
    return {"table": table_, "kek_id_attribute": "kek_id", "wrapped_dek_attribute": "wrapped_dek", "ciphertext_attribute": "ciphertext",
            "context": {"id": "$id"}, **more}


def faults(method, body=None):
    """Puts a fault of the local AWS in force, lists the faults, or lifts them."""
    import urllib.request
    r = urllib.request.Request(os.environ["AWS_ENDPOINT_URL"] + "/_local/faults", method=method, data=json.dumps(body).encode() if body else None)
    return urllib.request.urlopen(r).read().decode()


class Deployment:
    """One stack of its own, without functions; commands run in the operator's process.
    The sources are what kms-genesis registers first."""

    def __init__(self, sources, kek=None, genesis=True, **env):
        n = uuid.uuid4().hex[:8]
        self.stack = "s" + n
        control = table((("pk", "S"), ("sk", "S")), name=self.stack + "-control")
        bucket = self.stack + "-audit"
        s3.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=True,
                         CreateBucketConfiguration={"LocationConstraint": os.environ["AWS_REGION"]})
        s3.put_object_lock_configuration(Bucket=bucket, ObjectLockConfiguration={
            "ObjectLockEnabled": "Enabled", "Rule": {"DefaultRetention": {"Mode": "COMPLIANCE", "Days": 365}}})
        self.control, self.kek = control, kek
        self.env = dict(os.environ, MATTER_STACK=self.stack, MATTER_CONTROL_TABLE=control, MATTER_AUDIT_BUCKET=bucket,
                        MATTER_CORPUS="", MATTER_SOURCES=json.dumps(sources))
        self.env.update(env)
        if kek and genesis:
            rc, out = self.run("kms-genesis", "--kek-id", kek, "--confirm")
            assert rc == 0, out
        del self.env["MATTER_SOURCES"]  # nothing but genesis reads it

    def run(self, *args, quiet=False, timeout=300):
        p = subprocess.run([MATTER, "ops", *args], env=self.env, capture_output=True, text=True, timeout=timeout)
        out = (p.stdout + p.stderr).strip()
        if not quiet:
            print(f"$ matter ops {' '.join(args)}\n{out}\n[exit {p.returncode}]", flush=True)
        return p.returncode, out

    def add(self, *definitions):
        """Registers sources, or gives those of the same name other definitions."""
        with tempfile.NamedTemporaryFile("w", suffix=".json") as f:
            json.dump(definitions, f)
            f.flush()
            return self.run("source", "add", "--file", f.name, "--confirm")

    def mint(self, label="case", *more):
        rc, out = self.run("kms-mint-kek", "--label", label, "-o", "json", *more)
        if rc:
            return None
        return json.loads(out[out.index("{"):])["new_kek_id"]

    def rotate(self, label="case", *more, until="verify"):
        """The runbook by hand; returns {step: (rc, output)} and the new KEK. Nothing is
        returned of a rotation that was refused before a KEK was minted."""
        got = {}
        new = self.mint(label, *more)
        if not new:
            return got, None
        old = self.pointer()
        for step, args in (("dual", ("kms-dual-unwrap", "--kek-id", new)),
                           ("switch", ("kms-switch-pointer", "--kek-id", new, "--confirm")),
                           ("drain", ("kms-watch-drain", "--old-kek-id", old, "--max-wait", "1m")),
                           ("rewrap", ("kms-rewrap", "--kek-id", new)),
                           ("retire", ("kms-retire-kek", "--kek-id", old, "--confirm")),
                           ("verify", ("verify-kms-rotation", "--new-kek-id", new))):
            got[step] = self.run(*args)
            if got[step][0] or step == until:
                break
        return got, new

    def pointer(self):
        return ddb.get_item(TableName=self.control, Key={"pk": {"S": "POINTER"}, "sk": {"S": "-"}})["Item"]["kek_id"]["S"]


def item(table_, **k):
    return ddb.get_item(TableName=table_, Key=k, ConsistentRead=True).get("Item")


def verdict(ok, why=""):
    print("RESULT:", "right" if ok else "WRONG", why)
    sys.exit(0 if ok else 1)
