// Feedback records from a file, or standard input, to Kafka; done when all are durable.
//
//	go run . BOOTSTRAP TOPIC [FILE]
//
// FILE has one JSON record per line (docs/feedback.md says of what). If this fails half-way, run
// it again: what was written before is a duplicate, which is harmless.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"log"
	"os"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// keyOf is the decision id in hexadecimal, which every ticket carries in its bytes 2 to 13. Nil where
// there is no ticket: such a record shows among the dead letters, with the reason.
func keyOf(record []byte) []byte {
	var report struct{ Ticket string }
	err := json.Unmarshal(record, &report)
	ticket, bad := base64.RawURLEncoding.DecodeString(strings.TrimRight(report.Ticket, "="))
	if err != nil || bad != nil || len(ticket) < 14 {
		log.Printf("no ticket in: %.80s", record)
		return nil
	}
	return []byte(hex.EncodeToString(ticket[2:14]))
}

func main() {
	// franz-go is idempotent, waits for all in-sync replicas and hashes keys as Java does, unasked.
	client, err := kgo.NewClient(
		kgo.SeedBrokers(strings.Split(os.Args[1], ",")...),
		kgo.DefaultProduceTopic(os.Args[2]),
		kgo.RecordDeliveryTimeout(2*time.Minute), // how long a broker may be away
		kgo.ProducerBatchCompression(kgo.ZstdCompression()),
	)
	check(err)
	defer client.Close()

	file := os.Stdin
	if len(os.Args) > 3 && os.Args[3] != "-" {
		file, err = os.Open(os.Args[3])
		check(err)
	}
	var records []*kgo.Record
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 1<<20) // longer than any record may be
	for lines.Scan() {
		if line := bytes.Clone(lines.Bytes()); len(bytes.TrimSpace(line)) > 0 {
			records = append(records, &kgo.Record{Key: keyOf(line), Value: line})
		}
	}
	check(lines.Err())
	check(client.ProduceSync(context.Background(), records...).FirstErr())
	log.Printf("%d records written to %s", len(records), os.Args[2])
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
