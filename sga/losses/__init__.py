"""The unlearning methods: a loss is a scalar from the model's numbers on groups of answers, and never sees a model.

docs/methods.md lists them with equation, needs and cost, and shows how to add your own.
"""
