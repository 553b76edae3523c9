"""What a run would take, from the model's configuration alone: memory by device, disk, time.

`trace` runs one forward and backward pass over shapes, `estimate` adds up, `command` reads options and prints.
"""
