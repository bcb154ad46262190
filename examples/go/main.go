// A service that asks Fairlead which model should take a prompt, and reports how that went.
//
//	./generate.sh && go run . HOST:PORT
//
// FAIRLEAD_TOKEN is sent as a bearer token; FAIRLEAD_CA is a PEM file of whom to trust over TLS.
// docs/clients.md says why time-outs, retries and errors are what they are here.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	fairleadv1 "example/fairlead/v1"
)

// A decision may be asked for again, and so may feedback: each value of a decision counts once.
const retries = `{"methodConfig": [{
	"name": [{"service": "fairlead.v1.Router", "method": "Route"},
	         {"service": "fairlead.v1.Router", "method": "SendFeedback"}],
	"retryPolicy": {"maxAttempts": 3, "initialBackoff": "0.05s", "maxBackoff": "1s",
	                "backoffMultiplier": 2, "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"]}}]}`

// What to use when the router can't be asked: a request is never lost for want of a decision.
const fallback = "small"

// A process's first decision makes the connection, too; later ones take a millisecond, and 1 s is much.
const patience = 10 * time.Second

// bearer shows a token with every call. gRPC refuses to send it without TLS, but where it is told to.
type bearer struct {
	token  string
	secure bool
}

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + b.token}, nil
}

func (b bearer) RequireTransportSecurity() bool { return b.secure }

// connect makes one connection for the whole process: it is safe for all goroutines, and renews itself.
func connect(address, token, ca string) (*grpc.ClientConn, error) {
	secured := insecure.NewCredentials()
	if ca != "" {
		pem, err := os.ReadFile(ca)
		if err != nil {
			return nil, err
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s has no certificate", ca)
		}
		secured = credentials.NewTLS(&tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12})
	}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(secured),
		grpc.WithDefaultServiceConfig(retries),
	}
	if token != "" {
		options = append(options, grpc.WithPerRPCCredentials(bearer{token, ca != ""}))
	}
	return grpc.NewClient(address, options...)
}

func request(id, text string) *fairleadv1.RouteRequest {
	return &fairleadv1.RouteRequest{
		RequestId: id,
		Prompt:    &fairleadv1.RouteRequest_Text{Text: text},
	}
}

// choose says which model should answer. The decision is nil where the fallback does.
func choose(router fairleadv1.RouterClient, text string) (string, *fairleadv1.Decision, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	decision, err := router.Route(ctx, request("r1", text))
	switch status.Code(err) {
	case codes.OK:
		return decision.Model, decision, nil
	case codes.Unavailable, codes.DeadlineExceeded, codes.ResourceExhausted, codes.Canceled:
		log.Printf("without a decision: %v", err) // the router is away or full
		return fallback, nil, nil
	default:
		return "", nil, err // the request, the token or the settings have to be mended
	}
}

// report says how it went. Later, again or in parts is as good.
func report(router fairleadv1.RouterClient, decision *fairleadv1.Decision) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	reply, err := router.SendFeedback(ctx, &fairleadv1.FeedbackRequest{
		Outcomes: []*fairleadv1.Outcome{{
			Ticket:    decision.Ticket,
			Quality:   proto.Float64(0.9),
			CostUsd:   proto.Float64(0.0004),
			LatencyMs: proto.Float64(812),
		}},
	})
	if err == nil {
		fmt.Printf("accepted %d\n", reply.Accepted)
	}
	return err
}

// stream asks for several on one call. Replies come in any order, and a bad request fails alone.
func stream(router fairleadv1.RouterClient, requests ...*fairleadv1.RouteRequest) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	call, err := router.RouteStream(ctx)
	if err != nil {
		return err
	}
	for _, one := range requests {
		if err := call.Send(one); err != nil {
			return err
		}
	}
	if err := call.CloseSend(); err != nil {
		return err
	}
	for {
		reply, err := call.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if failed := reply.GetProblem(); failed != nil {
			fmt.Printf("%s failed: %s\n", reply.RequestId, failed.Message)
		} else {
			fmt.Printf("%s decided\n", reply.RequestId)
		}
	}
}

func main() {
	connection, err := connect(os.Args[1], os.Getenv("FAIRLEAD_TOKEN"), os.Getenv("FAIRLEAD_CA"))
	check(err)
	defer connection.Close()
	router := fairleadv1.NewRouterClient(connection)

	model, decision, err := choose(router, "What is the capital of Australia?")
	check(err)
	fmt.Printf("model %s\n", model)
	if decision == nil {
		return // nothing to report on
	}
	check(report(router, decision))

	unknown := request("s2", "Which one?")
	unknown.AllowedModels = []string{"no-such-model"}
	check(stream(router, request("s1", "Which one?"), unknown))
}

func check(err error) {
	if err != nil {
		log.Fatalf("%s: %s", status.Code(err), status.Convert(err).Message())
	}
}
