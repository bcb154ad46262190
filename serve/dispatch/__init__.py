"""One request being answered: which endpoint is called, when another one is, and what it cost.

A race to the first token, one answer streamed, its accounts settled; cascade and fan-out on top.
May import `health`, `routing`, `proto` and `errors`; knows neither gRPC nor HTTP nor Ray.
"""
