"""What an operator must be able to trust: nobody gets in, nothing crashes, leaks or is lost.

May import `speed` and `upstreams` of load/bench, `load.errors`, and infra/ and serve/.
"""
