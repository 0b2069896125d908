# Made by python -m adaptk.catalogue.

# The class of each rule.
CLASSES: dict[str, str] = {}

# Rules that serve others.
HELPERS: tuple[str, ...] = ()
