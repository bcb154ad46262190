"""A small program that speaks OpenAI's API: the `command` of a pool in tests.

    python openai_program.py HOST PORT [--children FILE] [--ready-after S] [--deaf] [--exit N]

It needs nothing but the standard library, and so starts at once. Its answer is its own process id
and "over", in two pieces. `--children` starts a child that sleeps, and writes both ids to the file.
`--deaf` ignores SIGTERM, in the child, too.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CHILD = "import time; time.sleep(600)"
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "


class Handler(BaseHTTPRequestHandler):
    """Lists a model and answers everything alike."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self.reply(b'{"object": "list", "data": []}', "application/json")

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        pieces = [
            {
                "choices": [
                    {"index": 0, "delta": {"role": "assistant", "content": f"{os.getpid()} "}}
                ]
            },
            {"choices": [{"index": 0, "delta": {"content": "over"}, "finish_reason": "stop"}]},
            {
                "choices": [],
                "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9},
            },
        ]
        head = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": asked["model"]}
        events = [b"data: " + json.dumps(head | piece).encode() for piece in pieces]
        self.reply(b"\n\n".join([*events, b"data: [DONE]\n\n"]), "text/event-stream")

    def reply(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    read = argparse.ArgumentParser()
    read.add_argument("host")
    read.add_argument("port", type=int)
    read.add_argument("--children", type=pathlib.Path)
    read.add_argument("--ready-after", type=float, default=0.0)
    read.add_argument("--deaf", action="store_true")
    read.add_argument("--exit", type=int)
    asked = read.parse_args()
    if asked.deaf:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if asked.children:
        child = subprocess.Popen([sys.executable, "-c", (DEAF if asked.deaf else "") + CHILD])
        asked.children.write_text(f"{os.getpid()} {child.pid}\n")
    time.sleep(asked.ready_after)
    if asked.exit is not None:
        sys.exit(asked.exit)
    ThreadingHTTPServer((asked.host, asked.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
