"""A trained network behind the HTTP interface of the usual completions API: docs/serving.md.

The web side (routes, bodies, errors) runs in one thread, the network in another (engine.py).
"""
