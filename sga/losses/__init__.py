"""The methods: a loss is a scalar from what the model says about groups' answers, and sees numbers, never a model.

docs/methods.md lists them with equation, needs and cost, and shows how one of your own is added.
"""
