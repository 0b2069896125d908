r"""
Threads without locks
=====================

Hogwild! (Niu et al. 2011) lets all threads update the same weights whenever they like. When
rows are sparse, two threads seldom want the same weight, and an update that is lost now and
then does not matter. This page trains logistic regression on rows whose features follow a
power law, as words do, and draws the loss over the passes and what the threads bring.
"""

import time

import adaptk
import matplotlib.pyplot as plt
import numpy as np
from adaptk.hogwild import SGDClassifier

plt.style.use("petroff10")

ROWS, FEATURES, PER_ROW = 30_000, 20_000, 40
rng = np.random.default_rng(0)
drawn = np.sort((FEATURES ** rng.random((ROWS, PER_ROW)) - 1).astype(np.int32), axis=1)
first = np.ones_like(drawn, bool)
first[:, 1:] = drawn[:, 1:] != drawn[:, :-1]
indices = rng.permutation(FEATURES).astype(np.int32)[drawn][first]
starts = np.append(0, first.sum(axis=1).cumsum()).astype(np.int32)
order = np.lexsort((indices, np.repeat(np.arange(ROWS), np.diff(starts))))
indices = indices[order]
data = np.full(len(indices), PER_ROW**-0.5, np.float32)
X = (data, indices, starts, (ROWS, FEATURES))
scores = np.add.reduceat(data * rng.normal(size=FEATURES)[indices], starts[:-1])
y = scores + 0.5 * rng.normal(size=ROWS) > 0


def fit(threads, mode="hogwild", **options):
    model = SGDClassifier(
        "log_loss",
        rule="sgd",
        eta0=1.0,
        max_iter=8,
        tol=None,
        random_state=0,
        n_jobs=threads,
        mode=mode,
        **options,
    )
    begin = time.perf_counter()
    model.fit(X, y)
    return model, time.perf_counter() - begin


# %%
# Two threads never wait for each other, and learn about what one does. Eight threads on fewer
# cores are another matter: a thread that does not run keeps its latest changes to itself, and
# comes back with weights that others have long changed. The first passes learn less then.

figure, ax = plt.subplots(figsize=(7.5, 3.5), layout="constrained")
cases = {
    "1 thread": (1, "hogwild"),
    "2 threads": (2, "hogwild"),
    "8 threads": (8, "hogwild"),
    "2, locked": (2, "locked"),
}
for style, (name, (threads, mode)) in zip(
    ("-", "--", "-.", ":"), cases.items(), strict=True
):
    model, _ = fit(threads, mode)
    ax.plot(np.arange(1, 9), model.loss_curve_, style, label=name, lw=2)
ax.set(xlabel="pass", ylabel="mean loss before each update")
ax.legend()
plt.show()

# %%
# What a pass takes, on the machine that built this page. The weights of frequent features
# are what threads would fight for. With ``publish_every=1`` they do: each writes to the
# shared weights at once, and they travel from cache to cache. By default a thread has copies
# of those weights, and adds what it has changed after about 32 updates, which takes some time
# of its own: which is faster depends on the data and the machine. With one lock for all
# weights, threads stand in line. On a machine that is busy with other things, a pass may well
# take two threads longer than one.

counts = list(range(1, adaptk.get_num_threads() + 1))
figure, ax = plt.subplots(figsize=(7.5, 3.5), layout="constrained")
alone = min(fit(1)[1] for _ in range(3))
for name, options in {
    "copies of frequent weights": {},
    "shared weights only": {"publish_every": 1},
    "one lock": {"mode": "locked"},
}.items():
    ax.plot(
        counts,
        [alone / min(fit(n, **options)[1] for _ in range(3)) for n in counts],
        "o-",
        label=name,
    )
ax.plot(counts, counts, ":", color="gray", label="ideal")
ax.set(xlabel="threads", ylabel="speed, times one thread", xticks=counts, ylim=0)
ax.legend()
plt.show()
