"""The parts of ``bench/torch_race.py``.

- ``contenders``: the rules under their names in each library, and the libraries: two tables.
- ``cases``: what is stepped: the tensors of one size, of models, and of networks that are trained.
- ``runner``: what is measured, and the processes that measure it.
- ``report``: the targets, and all results as Markdown.
- ``plot``: the picture.
"""
