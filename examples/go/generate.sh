#!/usr/bin/env bash
# Makes the client's Go code from the protos, into fairlead/v1/. Needs Go, and protoc or what PROTOC
# names: PROTOC="python -m grpc_tools.protoc" where the Python package grpcio-tools is installed.
set -euo pipefail
cd "$(dirname "$0")"
protos=${PROTOS:-../../serve/proto}
go build -o bin/ google.golang.org/protobuf/cmd/protoc-gen-go google.golang.org/grpc/cmd/protoc-gen-go-grpc
# The package's place is this module here; without these options it is the protos' `go_package`.
place="Mfairlead/v1/router.proto=example/fairlead/v1;fairleadv1,Mfairlead/v1/dispatch.proto=example/fairlead/v1;fairleadv1"
${PROTOC:-protoc} -I"$protos" \
  --plugin=protoc-gen-go=bin/protoc-gen-go --plugin=protoc-gen-go-grpc=bin/protoc-gen-go-grpc \
  --go_out=. --go_opt="module=example,$place" --go-grpc_out=. --go-grpc_opt="module=example,$place" \
  fairlead/v1/router.proto fairlead/v1/dispatch.proto
