"""The Kafka broker that `local_kafka` runs: what is missing is said, and it stays in its bounds."""

from __future__ import annotations

import pickle
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml
from local_kafka import __main__ as command
from local_kafka.broker import COMMON_PROPERTIES, Broker, find_java
from local_kafka.errors import BrokerFailed, JarsMissing, JavaMissing, MavenMissing
from local_kafka.jars import HERE, fetch_jars
from waiting import until

from infra.errors import InfraError

PATIENCE_S = 120.0


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Make a shell script the only program of its name on the PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}")

    def make(name: str, script: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n")
        (folder / name).chmod(0o755)

    return make


@pytest.fixture
def pom(tmp_path: Path) -> Path:
    pom = tmp_path / "pom.xml"
    pom.write_text("<project/>")
    return pom


# --- what is missing


def test_no_java_is_said_with_how_to_get_it(program):
    """
    The command for Debian and macOS, and the way without Java.
    """
    with pytest.raises(JavaMissing, match=r"no `java` on the PATH.*openjdk-17.*compose\.yaml"):
        find_java()


@pytest.mark.parametrize(
    ("said", "enough"),
    [
        ('openjdk version "1.8.0_392"', False),
        ('openjdk version "11.0.21" 2023-10-17', False),
        ("this is not the java you are looking for", False),
        ('openjdk version "17.0.15" 2025-04-15', True),
        ('java version "25" 2025-09-16', True),
    ],
)
def test_java_must_be_new_enough(program, said, enough):
    """
    Kafka 4 needs 17; what was found is quoted.
    """
    program("java", f"echo '{said}' >&2")

    if enough:
        assert find_java().endswith("java")
    else:
        with pytest.raises(JavaMissing, match=r"Java 17 or newer") as caught:
            find_java()
        assert caught.value.found == said


def test_no_maven_is_said_with_how_to_get_it(program, pom, tmp_path):
    """
    And where the jars would have to be copied to.
    """
    with pytest.raises(MavenMissing, match="apt-get install maven") as caught:
        fetch_jars(pom, tmp_path / "libs")
    assert str(tmp_path / "libs") in str(caught.value)


def test_what_maven_said_is_handed_on(program, pom, tmp_path):
    """
    With the likely cause; and the next try starts anew.
    """
    program("mvn", "echo 'Could not transfer artifact'; exit 1")

    for _ in range(2):
        with pytest.raises(JarsMissing, match=r"(?s)check the network.*Could not transfer"):
            fetch_jars(pom, tmp_path / "libs")


@pytest.mark.parametrize(
    "error",
    [
        JavaMissing(None),
        JavaMissing("11"),
        MavenMissing("a"),
        JarsMissing("a", "b"),
        BrokerFailed("a", "b", "c"),
    ],
)
def test_errors_survive_pickling(error):
    """
    Whatever process they are raised in.
    """
    again = pickle.loads(pickle.dumps(error))

    assert (str(again), vars(again)) == (str(error), vars(error))
    assert isinstance(error, InfraError)


# --- the jars


def test_jars_are_fetched_once_however_many_ask(program, pom, tmp_path):
    """
    A new `pom.xml` replaces them; nothing else does.
    """
    libs, calls = tmp_path / "libs", tmp_path / "calls"
    program("mvn", f"echo call >> {calls}; sleep 0.2; touch {libs}/kafka-1.jar")

    threads = [threading.Thread(target=fetch_jars, args=(pom, libs)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls.read_text().count("call") == 1

    (libs / "kafka-0.jar").touch()
    pom.write_text("<project>newer</project>")
    fetch_jars(pom, libs)
    assert calls.read_text().count("call") == 2
    assert [jar.name for jar in libs.glob("*.jar")] == ["kafka-1.jar"]


def test_a_fetch_that_was_interrupted_is_done_again(program, pom, tmp_path):
    """
    The folder says that it is complete only once it is.
    """
    libs = tmp_path / "libs"
    program("mvn", f"touch {libs}/half.jar; exit 1")
    with pytest.raises(JarsMissing):
        fetch_jars(pom, libs)

    program("mvn", f"touch {libs}/whole.jar")
    fetch_jars(pom, libs)
    assert [jar.name for jar in libs.glob("*.jar")] == ["whole.jar"]


# --- the broker


@pytest.mark.kafka
def test_it_listens_on_this_machine_only(kafka_broker):
    """
    Every port that the process has open.
    """
    kafka_broker.start()
    listening = {
        (at.laddr.ip.removeprefix("::ffff:"), at.laddr.port)
        for at in psutil.Process(kafka_broker.pid).net_connections("inet")
        if at.status == psutil.CONN_LISTEN
    }

    assert {ip for ip, _ in listening} == {"127.0.0.1"}
    assert kafka_broker.port in {port for _, port in listening}


@pytest.mark.kafka
def test_starting_twice_is_starting_once(kafka_broker):
    """
    The same process goes on.
    """
    kafka_broker.start()
    pid = kafka_broker.pid

    assert kafka_broker.start().pid == pid


@pytest.mark.kafka
@pytest.mark.slow
def test_a_port_that_is_taken_is_an_error_with_the_end_of_the_log(kafka_broker, tmp_path):
    """
    And no process is left.
    """
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        broker = Broker(tmp_path, other.getsockname()[1])
        with pytest.raises(BrokerFailed, match=r"(?s)ended with 1.*port is taken.*BindException"):
            broker.start()
    assert broker.pid is None


@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of a parent's end")
def test_it_does_not_outlive_the_process_that_started_it(kafka_broker, tmp_path):
    """
    Not even when that one is killed and can't clean up.
    """
    program = """if True:
        import sys, time
        from pathlib import Path
        from local_kafka.broker import Broker
        print(Broker(Path(sys.argv[1])).start().pid, flush=True)
        time.sleep(1000)
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    java = psutil.Process(int(parent.stdout.readline()))
    assert java.is_running()

    parent.kill()
    parent.wait()

    until(lambda: not java.is_running() or java.status() == psutil.STATUS_ZOMBIE)


@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_it_is_told_to_stop(kafka_broker, tmp_path, number):
    """
    Ctrl-C and `kill` both end it in order.
    """
    arguments = ["start", "--dir", str(tmp_path), "--port", "0"]
    running = subprocess.Popen(
        [sys.executable, "-m", "local_kafka", *arguments], stdout=subprocess.PIPE, text=True
    )
    said = running.stdout.readline()
    assert said.startswith("Kafka serves 127.0.0.1:")

    running.send_signal(number)

    assert running.wait(PATIENCE_S) == 0
    assert "shut down completed" in (tmp_path / "broker.log").read_text()


def test_the_command_prints_what_is_missing(program, tmp_path, capsys):
    """
    Instead of a traceback.
    """
    assert command.main(["start", "--dir", str(tmp_path)]) == 1
    assert "needs Java 17" in capsys.readouterr().err


# --- the same in a container


def test_the_container_has_the_same_settings_and_is_as_private():
    """
    It mounts the common settings, and adds only what depends on where it runs.
    """
    service = yaml.safe_load((HERE / "compose.yaml").read_text())["services"]["kafka"]
    version = (HERE / "pom.xml").read_text().partition("kafka_2.13</artifactId>")[2]

    assert service["ports"] == ["127.0.0.1:9092:9092"]
    assert f"<version>{service['image'].partition(':')[2]}</version>" in version
    assert any(mount.startswith("./config:") for mount in service["volumes"])
    common = COMMON_PROPERTIES.read_text()
    for name in service["environment"]:
        assert name.removeprefix("KAFKA_").lower().replace("_", ".") + "=" not in common


def test_no_repository_address_is_written_down():
    """
    Where jars come from is the machine's business.
    """
    for path in HERE.rglob("*"):
        if path.suffix in {".py", ".xml", ".yaml", ".properties"}:
            text = path.read_text().replace("http://maven.apache.org/POM/4.0.0", "")
            assert "http" not in text, path


def test_ports_are_below_those_the_kernel_hands_out(tmp_path):
    """
    Else a client that keeps trying a dead broker's port may connect to itself.
    """
    given_out = Path("/proc/sys/net/ipv4/ip_local_port_range")
    if not given_out.exists():
        pytest.skip("known on Linux only")
    lowest = int(given_out.read_text().split()[0])

    for i in range(20):
        assert Broker(tmp_path / str(i)).port < lowest
