// Feedback records from a file, or standard input, to Kafka; done when all are durable.
//
//   java -cp 'tools/local_kafka/local_kafka/libs/*' examples/feedback/Producer.java BOOTSTRAP TOPIC [FILE]
//
// FILE has one JSON record per line (docs/feedback.md says of what). If this fails half-way, run it
// again: what was written before is a duplicate, which is harmless.

import static java.nio.charset.StandardCharsets.UTF_8;

import java.io.*;
import java.nio.file.*;
import java.util.*;
import java.util.concurrent.Future;
import java.util.regex.*;
import org.apache.kafka.clients.producer.*;
import org.apache.kafka.common.serialization.ByteArraySerializer;

public class Producer {
    static final Pattern TICKET = Pattern.compile("\"ticket\"\\s*:\\s*\"([A-Za-z0-9_=-]+)\"");

    /**
     * The decision id in hexadecimal, which every ticket carries in its bytes 2 to 13. Null where
     * there is no ticket: such a record shows among the dead letters, with the reason.
     */
    static byte[] keyOf(String record) {
        try {
            Matcher found = TICKET.matcher(record);
            byte[] ticket = Base64.getUrlDecoder().decode(found.find() ? found.group(1) : "");
            return HexFormat.of().formatHex(ticket, 2, 14).getBytes(UTF_8);
        } catch (IllegalArgumentException | IndexOutOfBoundsException error) {
            System.err.println("no ticket in: " + record);
            return null;
        }
    }

    public static void main(String[] args) throws Exception {
        Map<String, Object> settings = Map.of(
            "bootstrap.servers", args[0],
            "enable.idempotence", true, // a retry never becomes a second record
            "acks", "all", // every in-sync replica has it
            "delivery.timeout.ms", 120_000, // how long a broker may be away
            "linger.ms", 20, // few large batches instead of many small ones
            "compression.type", "zstd");
        boolean piped = args.length < 3 || args[2].equals("-");
        var bytes = new ByteArraySerializer();
        List<Future<RecordMetadata>> written = new ArrayList<>();
        try (InputStream in = piped ? System.in : Files.newInputStream(Path.of(args[2]));
                var producer = new KafkaProducer<>(settings, bytes, bytes)) {
            for (String line : new BufferedReader(new InputStreamReader(in, UTF_8)).lines().toList())
                if (!line.isBlank())
                    written.add(producer.send(
                        new ProducerRecord<>(args[1], keyOf(line), line.getBytes(UTF_8))));
            producer.flush();
        }
        for (Future<?> one : written) one.get(); // throws if this record is not durable
        System.err.println(written.size() + " records written to " + args[1]);
    }
}
