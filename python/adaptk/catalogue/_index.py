"""Names of the catalogue's rules: made by ``python -m adaptk.catalogue``."""

# The class of each rule.
CLASSES: dict[str, str] = {
    "ademamix": "AdEMAMix",
    "simplified_ademamix": "SimplifiedAdEMAMix",
    "adopt": "ADOPT",
    "nadamw": "NAdamW",
    "laprop": "LaProp",
    "mars_adamw": "MARSAdamW",
    "mars_lion": "MARSLion",
    "sophia": "Sophia",
    "adahessian": "AdaHessian",
    "adams": "AdamS",
    "adabound": "AdaBound",
    "amsbound": "AMSBound",
    "qhadam": "QHAdam",
    "grams": "Grams",
    "qhm": "QHM",
    "aggmo": "AggMo",
    "pid": "PID",
    "accsgd": "AccSGD",
    "optimistic_sgd": "OptimisticSGD",
    "ftrl": "FTRL",
    "madgrad": "MADGRAD",
    "kate": "Kate",
    "schedule_free_sgd": "ScheduleFreeSGD",
    "schedule_free_adamw": "ScheduleFreeAdamW",
    "schedule_free_radam": "ScheduleFreeRAdam",
    "signsgd": "SignSGD",
    "signum": "Signum",
    "tiger": "Tiger",
}

# Rules that serve others.
HELPERS: tuple[str, ...] = (
    "sophia_hessian",
    "schedule_free_average",
)
