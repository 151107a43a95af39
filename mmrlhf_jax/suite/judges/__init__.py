"""Judges: models that read an answer and say how good it is, behind one interface.

`judge.py` has the judges, `judging.py` asks them and keeps what they say, and `loopback.py` is the server at which tasks of the
harness find their judge. A call that fails, or whose reply cannot be read, is the reason why a document is missing; it is never
a score.
"""
