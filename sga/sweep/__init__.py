"""Many ordinary runs that answer one question: a grid or a search, times seeds, by any number of workers.

plan says which runs there are, claims shares them out, work makes them, results and page say what came out.
"""
