"""`python -m local_kafka start`: a broker until Ctrl-C; `… jars`: fetch its jars only."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from local_kafka.broker import Broker
from local_kafka.errors import BrokerError
from local_kafka.jars import fetch_jars


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m local_kafka", description=__doc__)
    commands = parser.add_subparsers(required=True)
    start = commands.add_parser("start", help="run a broker in the foreground until Ctrl-C")
    start.add_argument("--dir", type=Path, default=Path(".fairlead/kafka"), help="its files")
    start.add_argument("--port", type=int, default=9092, help="on 127.0.0.1; 0 for any free one")
    start.set_defaults(run=_start)
    jars = commands.add_parser("jars", help="fetch Kafka's jars with Maven, once")
    jars.set_defaults(run=_jars)
    chosen = parser.parse_args(arguments)
    try:
        return chosen.run(chosen)
    except BrokerError as error:
        print(error, file=sys.stderr)
        return 1


def _start(chosen: argparse.Namespace) -> int:
    # `kill` of this process is a Ctrl-C too, so that the broker is stopped in order.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with Broker(chosen.dir, chosen.port) as broker:
            print(
                f"Kafka serves {broker.bootstrap_servers} from {broker.folder}; Ctrl-C stops it",
                flush=True,
            )
            return broker.wait()
    except KeyboardInterrupt:
        return 0


def _jars(_: argparse.Namespace) -> int:
    print(f"Kafka's jars are in {fetch_jars()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
