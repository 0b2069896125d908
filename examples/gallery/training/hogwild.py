r"""
Threads without locks
=====================

Hogwild! (Niu et al. 2011) lets all threads update the same weights at any time, without
locks. If rows are sparse, two threads seldom update the same weight at once, and it does not
matter if an update is lost now and then. This page trains logistic regression on rows whose
features follow a power law, as words do. It shows the loss of each pass over the data, and
the speed for different numbers of threads.
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
# Two threads never wait for each other, and the loss is about that of one thread. With eight
# threads on fewer cores, the first passes learn less: a thread that is not running holds back
# its latest changes, and continues with weights that others have changed long since.

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
# The next figure shows the speed of training, on the machine that built this page. Threads
# compete for the weights of frequent features:
#
# - By default, each thread has copies of these weights, and adds its changes to the shared
#   weights after about 32 updates. This takes some time too.
# - With ``publish_every=1``, each thread writes to the shared weights at once, and the weights
#   move from cache to cache.
# - With one lock for all weights, threads wait for each other.
#
# Which of the first two is faster depends on the data and the machine. On a machine that is
# busy with other work, two threads may well take longer than one.

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
