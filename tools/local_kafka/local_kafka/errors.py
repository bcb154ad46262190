"""What can go wrong with a broker on this machine.

BrokerError
├── JavaMissing     no Java, or one older than Kafka needs
├── MavenMissing    no Maven to fetch Kafka's jars with, and they are not here yet
├── JarsMissing     Maven could not fetch them
└── BrokerFailed    the broker ended, or did not get ready in time

Constructors are positional and pass their arguments on, so that every error survives pickling.
"""

from __future__ import annotations

from infra.errors import InfraError

JAVA_VERSION_MIN = 17  # Kafka 4 brokers refuse older ones


class BrokerError(InfraError):
    """Base of all errors of this folder."""


class JavaMissing(BrokerError):
    """`found` is what `java -version` printed, or None when there is no such program."""

    def __init__(self, found: str | None) -> None:
        super().__init__(found)
        self.found = found

    def __str__(self) -> str:
        what = "there is no `java` on the PATH" if self.found is None else f"found {self.found!r}"
        return (
            f"a Kafka broker needs Java {JAVA_VERSION_MIN} or newer, but {what}. Install one "
            f"(Debian: `apt-get install openjdk-17-jre-headless`; macOS: `brew install openjdk`), "
            f"or use `docker compose -f tools/local_kafka/local_kafka/compose.yaml up`."
        )


class MavenMissing(BrokerError):
    """`libs` is the folder that has no jars yet."""

    def __init__(self, libs: str) -> None:
        super().__init__(libs)
        self.libs = libs

    def __str__(self) -> str:
        return (
            f"Kafka's jars are not in {self.libs} yet, and there is no `mvn` on the PATH to fetch "
            f"them with. Install Maven (Debian: `apt-get install maven`; macOS: `brew install "
            f"maven`), or copy the folder from a machine where `python -m local_kafka jars` worked."
        )


class JarsMissing(BrokerError):
    """`said` is the end of what Maven printed."""

    def __init__(self, libs: str, said: str) -> None:
        super().__init__(libs, said)
        self.libs, self.said = libs, said

    def __str__(self) -> str:
        return (
            f"Kafka's jars (43 MB) could not be fetched into {self.libs}. Most likely Maven can't "
            f"reach a repository: check the network, or name a mirror in ~/.m2/settings.xml; then "
            f"run `python -m local_kafka jars`. What was said:\n{self.said}"
        )


class BrokerFailed(BrokerError):
    """`happened` says what, `log_path` where all of it is, `log_end` its last telling lines."""

    def __init__(self, happened: str, log_path: str, log_end: str) -> None:
        super().__init__(happened, log_path, log_end)
        self.happened, self.log_path, self.log_end = happened, log_path, log_end

    def __str__(self) -> str:
        return (
            f"the Kafka broker {self.happened}. Most likely its port is taken, another broker uses "
            f"its folder, or memory ran out. {self.log_path} says:\n{self.log_end}"
        )
