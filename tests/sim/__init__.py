"""The simulation (`trust.md` 5, L3): real runners, keepers, reapers and schedulers over a database in memory, in virtual time.

loop.py     an event loop whose time leaps from one timer to the next; processes that stand still or are gone
store.py    the database in memory, statement by statement; `test_contract.py` holds it against the real one
network.py  what lies between: delays, requests and replies that are lost, doubled, late
world.py    one seed: the fleet, its tasks, the faults, and the judgement
"""
