"""Feedback records from a file, or standard input, to Kafka; done when all are durable.

python producer.py BOOTSTRAP TOPIC [FILE]        needs: pip install "kafka-python>=3.0.12"

FILE has one JSON record per line (docs/feedback.md says of what). If this fails half-way, run it
again: what was written before is a duplicate, which is harmless.
"""

import base64
import json
import sys

from kafka import KafkaProducer


def key_of(record: bytes) -> bytes | None:
    """The decision id in hexadecimal, which every ticket carries in its bytes 2 to 13.

    None where there is no ticket: such a record is written all the same, so that it shows among the
    dead letters, with the reason. `fairlead feedback check FILE` says it beforehand.
    """
    try:
        ticket = json.loads(record)["ticket"]
        return base64.urlsafe_b64decode(ticket + "=" * (-len(ticket) % 4))[2:14].hex().encode()
    except (ValueError, KeyError, TypeError) as error:
        print(f"no ticket ({error!r}) in: {record[:80]!r}", file=sys.stderr)
        return None


def main(bootstrap: str, topic: str, path: str = "-") -> None:
    """Write every line that is not empty."""
    producer = KafkaProducer(
        bootstrap_servers=bootstrap.split(","),
        enable_idempotence=True,  # a retry never becomes a second record
        acks="all",  # every in-sync replica has it
        delivery_timeout_ms=120_000,  # how long a broker may be away
        linger_ms=20,  # few large batches instead of many small ones
    )
    with sys.stdin.buffer if path == "-" else open(path, "rb") as file:
        records = [line.rstrip(b"\r\n") for line in file if line.strip()]
    written = [producer.send(topic, key=key_of(record), value=record) for record in records]
    producer.flush()
    for future in written:
        future.get(timeout=0)  # raises if this record is not durable
    producer.close()
    print(f"{len(records)} records written to {topic}", file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:])
