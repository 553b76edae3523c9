"""One module for each verb of the command line, named like the verb."""
