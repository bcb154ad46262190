"""What an operator must be able to trust: nobody gets in, nothing crashes, leaks or is lost.

May import `speed`, `upstreams` and `settings` of load/bench, `errors`, and infra/ and serve/.
"""
