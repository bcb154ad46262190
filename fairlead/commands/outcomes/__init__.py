"""Commands about outcomes: what becomes of them, and what a judge's points mean.

May import `terminal`, `started`, `explain`, `client`, `dispatch`, `errors`, `messages`, and every
package below fairlead/.
"""
