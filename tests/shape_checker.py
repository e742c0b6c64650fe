"""The type checker that pytest runs every annotation of ours through, named in pyproject's addopts.

It is beartype with two settings. `Self` passes: jaxtyping decorates methods one by one, outside the class that would
give it a meaning. An int passes for a float, as type checkers have it (PEP 484).
"""

from typing import Self

from beartype import BeartypeConf, FrozenDict, beartype

check = beartype(conf=BeartypeConf(hint_overrides=FrozenDict({Self: object}), is_pep484_tower=True))
