"""Numeric hash key, binary range key, attribute names that are reserved words or have dots, a context of a number and
of non-ASCII text, an empty string among the context's values.
Right: rows rotate; the row whose context has an empty value is rotated or named, and nothing else is held up."""
from lib import *
k = key()["KeyId"]
t = table((("Number.1", "N"), ("Range", "B")))
def put(n, town):
    ctx = {"nr": n, "stadt": town, "k.v": "lit$"}
    ddb.put_item(TableName=t, Item={"Number.1": {"N": n}, "Range": {"B": b"\x00\xff"}, "Name": {"S": k}, "a.b[0]": {"B": wrap(k, ctx)}, "Value": {"B": b"x" * 40}, "Ort": {"S": town}})
put("1", "Zürich"); put("-0.5", "東京"); put("12345678901234567890123456789012345678", "x" * 3000)
d = Deployment([{"table": t, "kek_id_attribute": "Name", "wrapped_dek_attribute": "a.b[0]", "ciphertext_attribute": "Value",
                 "epoch_attribute": "Count", "version_attribute": "Size", "context": {"nr": "$Number.1", "stadt": "$Ort", "k.v": "lit$"}}], kek=k)
got, new = d.rotate()
verdict(got.get("verify", (9,))[0] == 0)
