"""What the layers cost beside nn.BatchNorm and beside other implementations, with targets.

The flow is one way: a ``Plan`` names suites of the ``registry`` and providers, the ``gate`` lets
only correct layers through, ``timing`` lets them take turns, and ``tables`` shows the records.
"""
