"""Models and batches on real data with one planted cause each, and healthy ones.

``suite`` lists them, ``planted_diseases.py`` beside this folder runs them.
"""
