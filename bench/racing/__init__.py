"""The parts of ``bench/torch_race.py``.

- ``contenders``: the rules under their names in each library, and the libraries: two tables.
- ``cases``: the tensors to step: of one size, of models, and of networks that are trained.
- ``runner``: the list of measurements, and the processes that make them.
- ``report``: the targets, and all results as Markdown.
- ``plot``: the picture.
"""
