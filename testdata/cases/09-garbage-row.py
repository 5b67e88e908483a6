"""One row of a thousand that nothing can unwrap, beside writers that go on (akash-network/console#3912, #3942).
Kind: a bad row is named and stepped over, everything else moves, no concurrent write is lost, and the run goes on once it is corrected."""
import threading
from lib import *
k = key()["KeyId"]
t = table()
N = 400
for i in range(N):
    ddb.put_item(TableName=t, Item={"id": {"S": f"r{i:04}"}, "kek_id": {"S": k}, "wrapped_dek": {"B": wrap(k, {"id": f"r{i:04}"})}, "ciphertext": {"B": b"x" * 40}, "n": {"N": "0"}})
ddb.put_item(TableName=t, Item={"id": {"S": "bad"}, "kek_id": {"S": k}, "wrapped_dek": {"B": b"garbage"}, "ciphertext": {"B": b"x" * 40}})
d = Deployment([definition(t)], kek=k)
got, new = d.rotate(until="drain")
stop, done, gone = threading.Event(), {}, set()
def writer():
    i = 0
    while not stop.is_set() and i < N:   # an attribute of the application's own, and every tenth row is deleted
        r = {"id": {"S": f"r{i:04}"}}
        if i % 10 == 9:
            ddb.delete_item(TableName=t, Key=r); gone.add(i)
        else:
            ddb.update_item(TableName=t, Key=r, UpdateExpression="SET n = :n", ExpressionAttributeValues={":n": {"N": str(i + 1)}}); done[i] = i + 1
        i += 1
w = threading.Thread(target=writer); w.start()
rc, out = d.run("kms-rewrap", "--kek-id", new)
stop.set(); w.join()
rows = {i: item(t, id={"S": f"r{i:04}"}) for i in range(N)}
lost = [i for i, n in done.items() if rows[i]["n"]["N"] != str(n)]
back = [i for i in gone if rows[i]]
moved = sum(r["kek_id"]["S"] == new for r in rows.values() if r)
ddb.put_item(TableName=t, Item={"id": {"S": "bad"}, "kek_id": {"S": k}, "wrapped_dek": {"B": wrap(k, {"id": "bad"})}, "ciphertext": {"B": b"x" * 40}})
rc2, _ = d.run("kms-rewrap", "--kek-id", new)
print(f"writes {len(done)} deletes {len(gone)} lost {lost} back {back} moved {moved}")
verdict(rc == 1 and "id=bad" in out and rc2 == 0 and not lost and not back and moved == N - len(gone))
