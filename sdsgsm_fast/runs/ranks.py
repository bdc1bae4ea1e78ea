"""Several processes at one set: they take shards from a common list, one after the other."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

WAIT = timedelta(days=1)  # for the first rank to look through what is there
POLL = 0.05  # seconds
GOODBYE = 30.0  # seconds


class Alone:
    """One process: it takes every shard."""

    leads = True

    def __init__(self) -> None:
        self.images = 0

    def share(self, begin: Callable[[], list[int]]) -> list[int]:
        """What `begin` finds: the numbers of the shards to be made."""
        return begin()

    def claims(self, missing: list[int]) -> Iterator[int]:
        """Shards for this process to make."""
        yield from missing

    def made(self, images: int) -> int:
        """Count images that were made; returns how many there are so far."""
        self.images += images
        return self.images

    def gather(self, look: Callable[[int], None]) -> None:
        """Wait for the others."""

    def close(self, end: Callable[[], dict[str, Any]] | None) -> dict[str, Any] | None:
        """What `end`, which the first process does, returns; None where the set is not complete."""
        return None if end is None else end()


class Ranks:
    """The processes of a torchrun; what they share is torchrun's own store.

    No collective is used: a rank that is slow holds nobody, and one that dies leaves its shard to
    whoever is started next.

    Parameters
    ----------
    rank, world, store
        This process, their number, and a store of `torch.distributed`.
    """

    def __init__(self, rank: int, world: int, store: Any) -> None:
        self.rank, self.world, self.store = rank, world, store
        self.store.set_timeout(WAIT)

    @property
    def leads(self) -> bool:
        """Whether this is the process that begins and closes the set."""
        return self.rank == 0

    def share(self, begin: Callable[[], list[int]]) -> list[int]:
        """What `begin` finds on the first rank: the numbers of the shards to be made."""
        if self.leads:
            self.store.set("missing", json.dumps(begin()))
        found: list[int] = json.loads(self.store.get("missing"))
        return found

    def claims(self, missing: list[int]) -> Iterator[int]:
        """Shards that nobody else has taken."""
        while (place := self.store.add("claimed", 1) - 1) < len(missing):
            yield missing[place]

    def made(self, images: int) -> int:
        """Count images that were made; returns how many all ranks have made."""
        return int(self.store.add("images", images))

    def gather(self, look: Callable[[int], None]) -> None:
        """Have the first rank wait for the others; ``look(images)`` is told how many were made."""
        self.store.add("finished", 1)
        while self.leads and self.store.add("finished", 0) < self.world:
            look(self.made(0))
            time.sleep(POLL)
        look(self.made(0))

    def close(self, end: Callable[[], dict[str, Any]] | None) -> dict[str, Any] | None:
        """What `end`, which the first rank does, returns; None where the set is not complete."""
        if self.leads:
            self.store.set("summary", json.dumps(None if end is None else end()))
        found: dict[str, Any] | None = json.loads(self.store.get("summary"))
        self.store.add("closed", 1)
        end_of_wait = time.monotonic() + GOODBYE
        # Without torchrun the store goes with the first rank: it stays until the others have read.
        while self.leads and self.store.add("closed", 0) < self.world and time.monotonic() < end_of_wait:
            time.sleep(POLL)
        return found


def team() -> Alone | Ranks:
    """Tell this process's place among those that torchrun has started, or alone.

    A torchrun that starts its processes again keeps its store: each start has its own part of it.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "RANK" not in os.environ:
        return Alone()
    import torch.distributed as distributed

    store, rank, world = next(distributed.rendezvous("env://"))  # type: ignore[attr-defined]
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return Ranks(rank, world, distributed.PrefixStore(f"sdsgsm_fast/{start}", store))  # type: ignore[attr-defined]
