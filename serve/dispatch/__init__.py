"""One request being answered: which endpoint is called, when another one is, and what it cost.

A race to the first token and its accounts settled; `strategies` stream one answer or several.
May import `health`, `routing`, `budgets`, `rules`, `sessions`, `proto` and `errors`; knows neither
gRPC nor HTTP nor Ray.
"""
