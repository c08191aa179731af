"""Scripts that read an exported folder with one library each, as its users would, and without this package.

Each is run in a process of its own, as ``python script.py JOBS.json RESULTS.json``. The jobs are a list of
dictionaries with a folder, its rows and the batches to embed them in; the results have the version of the
library and, for each job, the vectors of each batch, or why there are none.
"""
