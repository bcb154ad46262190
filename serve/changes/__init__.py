"""A change of policy on one replica: who decides a request, and what the other would have chosen.

May import `errors` alone of serve/; streams/ and learners/ beside.
"""
