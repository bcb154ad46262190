"""A real Kafka broker on this machine, for tests, trials and small installations. No Docker needed.

    pom.xml ──Maven──▶ libs/*.jar ──Java──▶ Broker ◀── config/server.properties

`python -m local_kafka start` runs one until Ctrl-C; `compose.yaml` is the same broker in a
container. A cluster that carries real traffic is somebody else's: give its addresses to
`streams.log.kafka_log` instead.
"""
