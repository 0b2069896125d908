"""A PyTorch sampler with a curriculum."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, SupportsIndex

from adaptk._names import not_installed
from adaptk._numbers import count
from adaptk.curriculum._curriculum import Curriculum

try:
    import torch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise not_installed("adaptk.curriculum.TorchSampler", "PyTorch", "torch") from None

__all__ = ["TorchSampler"]


class TorchSampler(torch.utils.data.Sampler[list[int]]):
    """A curriculum as a ``batch_sampler`` of ``torch.utils.data.DataLoader``.

    Each iteration over the sampler, and so over the loader, has ``steps`` batches and continues where the last one
    ended.

    Parameters
    ----------
    curriculum
        The :class:`Curriculum`, which the sampler advances.
    steps
        Number of batches in an iteration (an epoch of the training loop), >= 1.
    num_replicas, rank
        The number of processes and the rank of this process, if batches are divided among processes. By default those
        of ``torch.distributed`` if it is initialized, else 1 and 0. Every process must have an equal curriculum; it
        gets every ``num_replicas``-th example of each batch. If the size of a batch is not divisible by
        ``num_replicas``, its first examples are repeated, as in ``DistributedSampler``.

    Raises
    ------
    TypeError, ValueError
        An argument is of the wrong type, or out of range.

    Notes
    -----
    A loader with workers requests batches before the loop receives them. ``state_dict(batches=...)`` returns the state
    at the batch that the loop has reached. ``StatefulDataLoader`` of torchdata calls :meth:`state_dict` and
    :meth:`load_state_dict` by itself.

    Examples
    --------
    >>> import torch
    >>> from adaptk.curriculum import Curriculum, TorchSampler, pacing
    >>> data = torch.utils.data.TensorDataset(torch.arange(6.0))
    >>> batches = Curriculum([5, 0, 4, 1, 3, 2], pacing.linear(1 / 3, total=4), batch_size=2, seed=0)
    >>> loader = torch.utils.data.DataLoader(data, batch_sampler=TorchSampler(batches, steps=3))
    >>> len(loader)
    3
    >>> for (x,) in loader:
    ...     pass
    >>> batches.step
    3
    """

    def __init__(
        self,
        curriculum: Curriculum,
        steps: SupportsIndex,
        *,
        num_replicas: SupportsIndex | None = None,
        rank: SupportsIndex | None = None,
    ) -> None:
        if not isinstance(curriculum, Curriculum):
            raise TypeError(f"curriculum must be an adaptk.curriculum.Curriculum, got {type(curriculum).__name__}")
        if (num_replicas is None) != (rank is None):
            raise ValueError("num_replicas and rank belong together: give both or neither")
        distributed = torch.distributed
        replicas, number = 1, 0
        if num_replicas is not None and rank is not None:
            replicas, number = count("num_replicas", num_replicas, 1), count("rank", rank, 0)
        elif distributed.is_available() and distributed.is_initialized():
            replicas, number = distributed.get_world_size(), distributed.get_rank()
        if number >= replicas:
            raise ValueError(f"rank must be < num_replicas, got rank={number} and num_replicas={replicas}")
        self._curriculum = curriculum
        self._steps = count("steps", steps, 1)
        self._replicas, self._rank = replicas, number
        # The state at the start of the iteration, its number of batches, and the number that it has returned.
        self._began = curriculum.state_dict()
        self._total = self._steps
        self._given = 0
        self._resumed = False

    def __len__(self) -> int:
        """The number of batches in an iteration."""
        return self._steps

    def __iter__(self) -> Iterator[list[int]]:
        if not self._resumed:
            self._began, self._total, self._given = self._curriculum.state_dict(), self._steps, 0
        self._resumed = False
        while self._given < self._total:
            batch: list[int] = next(self._curriculum).tolist()
            share = -(-len(batch) // self._replicas)
            full = [batch[i % len(batch)] for i in range(share * self._replicas)]
            self._given += 1
            yield full[self._rank :: self._replicas]

    def state_dict(self, batches: SupportsIndex | None = None) -> dict[str, Any]:
        """The state of the curriculum, and the position in the iteration.

        Parameters
        ----------
        batches
            The number of batches of the current or last iteration that the loop has received. By default the number of
            batches that the loader has requested.

        Returns
        -------
        dict
            The state of :meth:`Curriculum.state_dict` with the item ``"left"``: the number of remaining batches in the
            iteration.
        """
        had = self._given if batches is None else count("batches", batches, 0)
        if had > self._given:
            raise ValueError(f"batches: {had}, but {self._given} were asked for in this iteration")
        left = self._total - had or self._steps
        if had == self._given:
            return {**self._curriculum.state_dict(), "left": left}
        past = copy.copy(self._curriculum)
        past.load_state_dict(self._began)
        for _ in range(had):
            next(past)
        return {**past.state_dict(), "left": left}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a saved state: continue with the batch after it, for the rest of its iteration.

        Parameters
        ----------
        state
            From :meth:`state_dict` of a sampler with the same arguments.

        Raises
        ------
        KeyError, TypeError, ValueError
            The state is incomplete, or from another curriculum. Nothing is changed in this case.
        """
        if "left" not in state:
            raise KeyError("state: no 'left'; expected what state_dict() returned")
        left = count("state['left']", state["left"], 1)
        if left > self._steps:
            raise ValueError(f"state['left']: {left}, expected at most the {self._steps} steps of this sampler")
        self._curriculum.load_state_dict(state)
        self._began, self._total, self._given = self._curriculum.state_dict(), left, 0
        self._resumed = True
