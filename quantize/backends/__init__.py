"""Quantizers of other projects, each in an interpreter that has it; what they make goes through our gate and report.

`base.py` says what there is, `interpreter.py` finds and runs it, `peer.py` is what runs there, `run.py` is the list of
steps.
"""
