package example;

import static java.util.concurrent.TimeUnit.SECONDS;

import fairlead.v1.Decision;
import fairlead.v1.FeedbackRequest;
import fairlead.v1.Outcome;
import fairlead.v1.RouteReply;
import fairlead.v1.RouteRequest;
import fairlead.v1.RouterGrpc;
import io.grpc.CallCredentials;
import io.grpc.ChannelCredentials;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.TlsChannelCredentials;
import io.grpc.stub.StreamObserver;
import java.io.File;
import java.io.IOException;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.Executor;
import java.util.concurrent.TimeUnit;

/**
 * A service that asks Fairlead which model should take a prompt, and reports how that went.
 *
 * <p>{@code mvn package && java -jar target/client.jar HOST:PORT}
 *
 * <p>FAIRLEAD_TOKEN is sent as a bearer token; FAIRLEAD_CA is a PEM file of whom to trust over TLS.
 * docs/clients.md says why time-outs, retries and errors are what they are here.
 */
public final class Service {
  /** What to use when the router can't be asked: a request is never lost for want of a decision. */
  private static final String FALLBACK = "small";

  /** A JVM's first call loads its classes, which takes a second or two; later ones take milliseconds. */
  private static final long DECISION_S = 10;

  /** A decision may be asked for again, and so may feedback: each value of a decision counts once. */
  private static final Map<String, ?> RETRIES =
      Map.of(
          "methodConfig",
          List.of(
              Map.of(
                  "name",
                  List.of(
                      Map.of("service", "fairlead.v1.Router", "method", "Route"),
                      Map.of("service", "fairlead.v1.Router", "method", "SendFeedback")),
                  "retryPolicy",
                  Map.of(
                      "maxAttempts", 3.0,
                      "initialBackoff", "0.05s",
                      "maxBackoff", "1s",
                      "backoffMultiplier", 2.0,
                      "retryableStatusCodes", List.of("UNAVAILABLE", "CANCELLED")))));

  private final RouterGrpc.RouterBlockingStub router;
  private final RouterGrpc.RouterStub streaming;

  private Service(ManagedChannel channel, String token) {
    var blocking = RouterGrpc.newBlockingStub(channel);
    var asynchronous = RouterGrpc.newStub(channel);
    boolean known = token != null;
    router = known ? blocking.withCallCredentials(new Bearer(token)) : blocking;
    streaming = known ? asynchronous.withCallCredentials(new Bearer(token)) : asynchronous;
  }

  /** Shows a token with every call. */
  private static final class Bearer extends CallCredentials {
    private static final Metadata.Key<String> AUTHORIZATION =
        Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER);
    private final Metadata headers = new Metadata();

    Bearer(String token) {
      headers.put(AUTHORIZATION, "Bearer " + token);
    }

    @Override
    public void applyRequestMetadata(RequestInfo info, Executor executor, MetadataApplier applier) {
      applier.apply(headers);
    }
  }

  /** One connection for the whole process: it is safe for all threads, and renews itself. */
  private static ManagedChannel connect(String address, String authority) throws IOException {
    ChannelCredentials secured =
        authority == null
            ? InsecureChannelCredentials.create()
            : TlsChannelCredentials.newBuilder().trustManager(new File(authority)).build();
    return Grpc.newChannelBuilder(address, secured)
        .defaultServiceConfig(RETRIES)
        .enableRetry()
        .build();
  }

  /** The decision, or nothing where the fallback answers. */
  private Optional<Decision> choose(String text) {
    try {
      return Optional.of(router.withDeadlineAfter(DECISION_S, SECONDS).route(request("r1", text)));
    } catch (StatusRuntimeException error) {
      switch (error.getStatus().getCode()) {
        case UNAVAILABLE, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, CANCELLED -> {
          System.err.println("without a decision: " + said(error)); // it is away or full
          return Optional.empty();
        }
        default -> throw error; // the request, the token or the settings have to be mended
      }
    }
  }

  /** Says how it went. Later, again or in parts is as good. */
  private long report(Decision decision) {
    Outcome outcome =
        Outcome.newBuilder()
            .setTicket(decision.getTicket())
            .setQuality(0.9)
            .setCostUsd(0.0004)
            .setLatencyMs(812)
            .build();
    return router
        .withDeadlineAfter(10, SECONDS)
        .sendFeedback(FeedbackRequest.newBuilder().addOutcomes(outcome).build())
        .getAccepted();
  }

  /** Asks for several on one call. Replies come in any order, and a bad request fails alone. */
  private void stream(RouteRequest... requests) throws Exception {
    var ended = new CompletableFuture<Void>();
    StreamObserver<RouteRequest> call =
        streaming
            .withDeadlineAfter(10, SECONDS)
            .routeStream(
                new StreamObserver<RouteReply>() {
                  @Override
                  public void onNext(RouteReply reply) {
                    String how =
                        reply.hasProblem() ? "failed: " + reply.getProblem().getMessage() : "decided";
                    System.out.println(reply.getRequestId() + " " + how);
                  }

                  @Override
                  public void onError(Throwable error) {
                    ended.completeExceptionally(error);
                  }

                  @Override
                  public void onCompleted() {
                    ended.complete(null);
                  }
                });
    for (RouteRequest request : requests) {
      call.onNext(request);
    }
    call.onCompleted();
    ended.get(10, TimeUnit.SECONDS);
  }

  private static RouteRequest request(String id, String text, String... allowed) {
    return RouteRequest.newBuilder()
        .setRequestId(id)
        .setText(text)
        .addAllAllowedModels(List.of(allowed))
        .build();
  }

  private static String said(StatusRuntimeException error) {
    Status status = error.getStatus();
    return status.getCode() + ": " + status.getDescription();
  }

  public static void main(String[] arguments) throws Exception {
    ManagedChannel channel = connect(arguments[0], System.getenv("FAIRLEAD_CA"));
    try {
      var service = new Service(channel, System.getenv("FAIRLEAD_TOKEN"));
      Optional<Decision> decision = service.choose("What is the capital of Australia?");
      System.out.println("model " + decision.map(Decision::getModel).orElse(FALLBACK));
      if (decision.isPresent()) { // else there is nothing to report on
        System.out.println("accepted " + service.report(decision.get()));
        service.stream(request("s1", "Which one?"), request("s2", "Which one?", "no-such-model"));
      }
    } catch (StatusRuntimeException error) {
      System.err.println(said(error));
      System.exit(1);
    } finally {
      channel.shutdownNow();
    }
  }
}
