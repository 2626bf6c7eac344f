"""Check of the files whose rows are encoded again only to merge parts."""

from __future__ import annotations

from msgspec import structs

from shardpress.cluster.executor import compute
from shardpress.cluster.threads import threads
from shardpress.run.digests import with_content
from shardpress.run.prepare import Prepared


def spared_shards(prepared: Prepared) -> list[int]:
    """Return the positions of shards whose rows stay, but whose files no longer have the content of the result.

    A file can be damaged without new times. Its rows then stay where they are, so that a merge neither loses them nor
    ends the run.
    """
    positions = [i for i in prepared.encoded if prepared.change.places[i].is_same]

    def is_lost(i: int) -> bool:
        shard = prepared.shards[i]
        known = prepared.request.shards[i]
        names = {extra.name for extra in shard.extras}
        found = with_content(structs.replace(known, rows=None, extras=None), shard, prepared.conversion, names)
        return None in (found.rows, found.extras) or found != known

    n_threads = prepared.budget.n_threads
    with threads(n_threads) as pool:
        are_lost = compute([(is_lost, i) for i in positions], pool, n_threads)
    return [i for i, is_so in zip(positions, are_lost, strict=True) if is_so]
