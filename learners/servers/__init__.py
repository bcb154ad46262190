"""What servers of models can do, learned of what they did: requests a second, tokens.

Nothing here knows models' answers: only how many requests were held, and what took how long.
May import `work`.
"""
