"""Ways to get into a site without the right, each of which must be refused.

May import `site` and `certificates`, `upstreams` of load/bench, `errors`, and serve/.
"""
