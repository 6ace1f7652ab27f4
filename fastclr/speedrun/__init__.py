"""Speedruns: how good an encoder in how short a time; `fastclr speedrun`, with its rules in benchmarks/speedruns.

rungs.py         what is run: metric, target or budget, machine, statistics
unlabelled.py    the training file with its labels struck out
warm_up.py       untimed steps on random pixels, after which everything is as before
worker.py        the processes of a seed: training, evaluation, and the timing of steps
run.py           all seeds of a command; finished ones are kept
record.py        a record's folder, written from the logs
check.py         the rules, as a function that reads a record's folder
tables.py        the tables of the ladder
"""
