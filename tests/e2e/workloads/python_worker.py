"""One worker: builds a table of records and a blob, says their checksum, and says it again for every line on stdin."""
import hashlib
import random
import sys

RECORDS = 60_000
BLOB_BYTES = 16 << 20

blob = random.Random(20240229).randbytes(BLOB_BYTES)
table = {f"user{i:06d}": {"id": i, "name": f"Name {i * 7919 % 100003}", "mail": f"user{i}@example.org",
                          "score": i * 0.37,
                          "tags": [f"group{i % 97}", f"team{i % 1009}", f"city{i * 31 % 4999}"]}
         for i in range(RECORDS)}


def checksum():
    h = hashlib.sha256(blob)
    for name, record in table.items():
        h.update(repr((name, record)).encode())
    return h.hexdigest()


print(checksum(), flush=True)
for _ in sys.stdin:
    print(checksum(), flush=True)
