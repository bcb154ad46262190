"""The commands of the command line, one file for each: what it does and what it shows.

May import the client's `channels`, `client`, `dispatch`, `errors` and `messages`, and every package
below fairlead/.
"""
