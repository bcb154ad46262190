"""One Kafka broker as a child process: Apache Kafka's own jars, no Docker, no ZooKeeper.

    with Broker(Path(".fairlead/kafka")) as broker:
        KafkaLog(KafkaOptions(bootstrap_servers=broker.bootstrap_servers))

Everything it writes is in its folder: `data/`, `server.properties`, `broker.log`. Tests stop, kill,
freeze and restart it to see what the rest of the system makes of that.

It listens on 127.0.0.1 only, and never outlives the process that started it.
"""

from __future__ import annotations

import base64
import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Self

from infra.pools.ports import free_ports
from local_kafka.errors import JAVA_VERSION_MIN, BrokerFailed, JavaMissing
from local_kafka.jars import HERE, fetch_jars

COMMON_PROPERTIES = HERE / "config" / "server.properties"
HOST = "127.0.0.1"
# Measured: ready in 3 s on two cores, 4 s with a new folder, 350 MB resident. A busy machine is
# given three minutes.
READY_S_MAX = 180.0
STOP_S_MAX = 30.0
LOOK_S = 0.02  # how often a file is looked at while waiting for a line in it
HEAP_MB = 384
READY_LINE = b"Kafka Server started"
TROUBLE = re.compile(r" (ERROR|FATAL) |Exception|OutOfMemory")
# The first compiler only, and the plain collector: a start takes 3.5 s of CPU time instead of 6.3.
# Python clients are at their own limit long before this broker is.
JAVA_FLAGS = (f"-Xmx{HEAP_MB}m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
LOG_FLAGS = tuple(
    f"-Dorg.slf4j.simpleLogger.{key}={value}"
    for key, value in {
        "logFile": "System.out",
        # It prints some 400 settings at each start, which would bury what went wrong.
        "log.org.apache.kafka.common.config": "warn",
        "showDateTime": "true",
        "dateTimeFormat": "yyyy-MM-dd'T'HH:mm:ss.SSSXXX",
        "showThreadName": "false",
    }.items()
)
PR_SET_PDEATHSIG = 1  # from linux/prctl.h


class Broker:
    """A single-node KRaft broker whose files are in `folder`.

    `port` 0 means any free one. The port stays the same over restarts, so clients find it again.
    Used by one thread. Start it from a thread that lives at least as long as the broker should:
    Linux ends a child when the *thread* that made it ends.
    """

    def __init__(self, folder: Path, port: int = 0) -> None:
        """Choose ports and say where everything is; `start` does the work."""
        self.folder = folder.resolve()
        self.data, self.log_path = self.folder / "data", self.folder / "broker.log"
        free = free_ports(2)
        self.port = port or free[0]
        self._controller_port = next(other for other in free if other != self.port)
        self._properties = self.folder / "server.properties"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def bootstrap_servers(self) -> str:
        """Where clients find it: "host:port"."""
        return f"{HOST}:{self.port}"

    @property
    def pid(self) -> int | None:
        """Process id while it runs (a frozen broker runs too), else None."""
        if self._process is None or self._process.poll() is not None:
            return None
        return self._process.pid

    def start(self, timeout_s: float = READY_S_MAX) -> Self:
        """Start it and wait until it serves clients; does nothing if it runs already.

        Raises JavaMissing, MavenMissing, JarsMissing and BrokerFailed.
        """
        if self.pid is not None:
            return self
        java, libs = find_java(), fetch_jars()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._properties.write_text(self._settings())
        command = [java, *JAVA_FLAGS, *LOG_FLAGS, "-cp", f"{libs}/*"]
        with self.log_path.open("ab") as log:
            begin = log.tell()
            if not (self.data / "meta.properties").exists():
                self._format(command, log.fileno(), begin)
            self._process = subprocess.Popen(
                [*command, "kafka.Kafka", str(self._properties)],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=self.folder,  # the JVM leaves its crash reports there
                start_new_session=True,  # Ctrl-C is for us; we stop the broker in order
                preexec_fn=_die_with_parent(),  # noqa: PLW1509 (takes no locks)
            )
        try:
            self._wait_ready(begin, timeout_s)
        except BaseException:
            self.kill()
            raise
        return self

    def stop(self, timeout_s: float = STOP_S_MAX) -> None:
        """End it in order, so that it writes its checkpoints; SIGKILL after `timeout_s`."""
        if self.pid is not None:
            self.resume()  # a frozen process does not hear SIGTERM
            self._send(signal.SIGTERM)
            try:
                self._child().wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        """End it as a power cut would, as far as the process is concerned."""
        if self.pid is not None:
            self._send(signal.SIGKILL)
            self._child().wait()

    def restart(self, timeout_s: float = READY_S_MAX) -> None:
        """Stop it if it still runs, and start it on the same ports and data."""
        self.stop()
        self.start(timeout_s)

    def pause(self) -> None:
        """Freeze it: connections stay open and nothing is answered any more, from the return on.

        The signal alone is a request: on a busy machine other threads were seen to go on for 8 ms,
        in which an append is acknowledged.
        """
        self._send(signal.SIGSTOP)
        os.waitid(os.P_PID, self._child().pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        self._send(signal.SIGCONT)

    def wait(self) -> int:
        """Wait until it ends by itself; its exit status."""
        return self._child().wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _send(self, number: signal.Signals) -> None:
        """Signal our own child by its id; a child that has ended can't be mistaken for another."""
        self._child().send_signal(number)

    def _child(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "not started"
        return self._process

    def _settings(self) -> str:
        """The common settings, then this broker's addresses and folder."""
        own = {
            "listeners": f"PLAINTEXT://{HOST}:{self.port},CONTROLLER://{HOST}:{self._controller_port}",
            "advertised.listeners": f"PLAINTEXT://{HOST}:{self.port}",
            "controller.quorum.voters": f"1@{HOST}:{self._controller_port}",
            "log.dirs": str(self.data),
        }
        return COMMON_PROPERTIES.read_text() + "".join(f"{k}={v}\n" for k, v in own.items())

    def _format(self, java: list[str], log: int, begin: int) -> None:
        """Prepare an empty data folder, as KRaft wants it."""
        # As kafka.tools.StorageTool makes them; one that begins with "-" would look like a flag.
        cluster_id = "A" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode()[1:22]
        tool = [*java, "kafka.tools.StorageTool", "format", "-t", cluster_id]
        done = subprocess.run(
            [*tool, "-c", str(self._properties)], stdout=log, stderr=log, check=False
        )
        if done.returncode != 0:
            raise BrokerFailed("could not format its data folder", *self._log_end(begin))

    def _wait_ready(self, begin: int, timeout_s: float) -> None:
        """Wait for the line in the log that says so, and for nothing longer than the process."""
        deadline = time.monotonic() + timeout_s
        while READY_LINE not in self._log_from(begin):
            if (status := self._child().poll()) is not None:
                raise BrokerFailed(f"ended with {status}", *self._log_end(begin))
            if time.monotonic() > deadline:
                raise BrokerFailed(f"was not ready in {timeout_s:.0f} s", *self._log_end(begin))
            time.sleep(LOOK_S)

    def _log_from(self, begin: int) -> bytes:
        with self.log_path.open("rb") as log:
            log.seek(begin)
            return log.read()

    def _log_end(self, begin: int) -> tuple[str, str]:
        """Where the log is, and its last lines that tell of trouble: shutting down is wordy."""
        lines = self._log_from(begin).decode(errors="replace").splitlines()
        trouble = [line for line in lines if TROUBLE.search(line)]
        return str(self.log_path), "\n".join(line[:500] for line in (trouble or lines)[-8:])


def find_java() -> str:
    """Path of a Java that is new enough. Raises JavaMissing."""
    java = shutil.which("java")
    if java is None:
        raise JavaMissing(None)
    said = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    found = re.search(r'version "(\d+)', said)
    if found is None or int(found[1]) < JAVA_VERSION_MIN:
        raise JavaMissing(said.partition("\n")[0])
    return java


def _die_with_parent() -> Callable[[], None] | None:
    """What the child runs before it becomes the broker: SIGKILL me when my parent ends.

    Linux only; elsewhere a broker outlives a parent that was killed, and `stop` is all there is.
    """
    if sys.platform != "linux":
        return None
    libc, parent = ctypes.CDLL(None), os.getpid()  # loaded before the fork: no locks after it

    def ask_kernel() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before the kernel knew
            os._exit(1)

    return ask_kernel
