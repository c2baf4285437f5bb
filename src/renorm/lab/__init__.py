"""Training runs that compare normalizers: tasks, nets, samplers, one run, a grid, a store.

The flow is one way: a ``Grid`` lists specifications, ``training.run`` turns each into a record,
a ``Store`` keeps the records, and ``renorm.report`` shows them.
"""
