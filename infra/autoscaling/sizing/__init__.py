"""Which replicas are the cheapest to have: the integer programme, and what keeps its answer steady.

May import `autoscaling.demand`, `autoscaling.contract` and infra/capacity.
"""
