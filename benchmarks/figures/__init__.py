"""The figures of README and docs, from the JSON of ``benchmarks/results`` and nothing else.

``make figures`` (``python -m benchmarks.figures``) writes every table and plot anew; ``tests/docs/test_figures.py``
fails where a page says something else than its JSON. A table stands in a page between ``<!-- figures: name -->`` and
``<!-- end of figures -->``, and ends with a line that names file, commit, versions and machine. A sentence with
figures is listed in ``claims.py``.
"""
