"""From a site's settings and a trace to answers: what users would see, what to buy, what it costs.

May import `simulation`, `traces`, `data`, `shares` and `errors` of load/.
"""
