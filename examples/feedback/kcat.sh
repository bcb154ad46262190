#!/usr/bin/env bash
# Feedback records from a file, or standard input, to Kafka; done when all are durable.
#
#   kcat.sh BOOTSTRAP TOPIC [FILE]           needs: kcat (Debian: apt-get install kcat)
#
# FILE has one JSON record per line (docs/feedback.md says of what). If this fails half-way, run it
# again: what was written before is a duplicate, which is harmless. Slow, as it starts a few
# programs per record: for trying things out, and for a few records by hand.
set -euo pipefail
bootstrap=$1 topic=$2 file=${3:--}

# The decision id in hexadecimal, which every ticket carries in its bytes 2 to 13.
key_of() {
  local ticket
  ticket=$(sed -nE 's/.*"ticket" *: *"([A-Za-z0-9_=-]{20}).*/\1/p' <<<"$1")
  [ -n "$ticket" ] || { echo "no ticket in: $1" >&2; return 1; }
  tr -- '-_' '+/' <<<"$ticket" | base64 -d | od -An -v -tx1 | tr -d ' \n' | cut -c5-28
}

# enable.idempotence: a retry never becomes a second record. acks: every in-sync replica has it.
# partitioner: hashes keys as Java does.
cat -- "$file" | while IFS= read -r record || [ -n "$record" ]; do
  [ -n "${record//[[:space:]]/}" ] || continue
  key=$(key_of "$record")
  printf '%s\t%s\n' "$key" "$record"
done | kcat -P -b "$bootstrap" -t "$topic" -K $'\t' -z zstd \
  -X enable.idempotence=true -X acks=all -X partitioner=murmur2_random \
  -X message.timeout.ms=120000
