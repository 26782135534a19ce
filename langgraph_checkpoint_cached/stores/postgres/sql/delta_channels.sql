-- Checkpoints and values that a `DeltaChannel` is rebuilt from.

-- name: delta_channels
-- Find the `DeltaChannel`s of some threads, by namespace. They leave counters in the metadata, or a snapshot:
-- `true` in the checkpoint with a blob behind it, which a plain `true` never has. Those of LangGraph.js leave only
-- a mark that does not name the channels: then `channel` is null.
select distinct c.thread_id, c.checkpoint_ns, counted.channel
from checkpoints c
cross join lateral jsonb_object_keys(case jsonb_typeof(c.metadata -> 'counters_since_delta_snapshot')
    when 'object' then c.metadata -> 'counters_since_delta_snapshot' else '{}'
end) as counted (channel)
where c.thread_id = any(%(threads)s)
union
select c.thread_id, c.checkpoint_ns, v.key
from checkpoints c
cross join lateral jsonb_each(c.checkpoint -> 'channel_values') as v
cross join lateral (
    select from checkpoint_blobs b
    where b.thread_id = c.thread_id and b.checkpoint_ns = c.checkpoint_ns and b.channel = v.key
      and b.version = c.checkpoint -> 'channel_versions' ->> v.key
    limit 1
) as snapshot
where c.thread_id = any(%(threads)s) and v.value = 'true'::jsonb
union
select thread_id, checkpoint_ns, null from checkpoints
where thread_id = any(%(threads)s) and metadata ? 'delta_writes_versioned'

-- name: delta_ancestors
-- Find checkpoints and their ancestors, back to the nearest that has a value stored for each of the channels that
-- have a version but no value: what those `DeltaChannel`s are rebuilt from. Nearest first; `lacks` are the
-- channels that are still without a value there. `union` removes duplicates, so that it ends even if rows name
-- each other as parents.
with recursive walk (checkpoint_id, parent_checkpoint_id, lacks) as (
    select c.checkpoint_id, c.parent_checkpoint_id, array(
        select wanted.channel from unnest(%(channels)s::text[]) as wanted (channel)
        where c.checkpoint -> 'channel_versions' ? wanted.channel
          and coalesce(c.checkpoint -> 'channel_values' -> wanted.channel, 'null') = 'null'
          and not exists (
            select from checkpoint_blobs b
            where b.thread_id = c.thread_id and b.checkpoint_ns = c.checkpoint_ns and b.channel = wanted.channel
              and b.version = c.checkpoint -> 'channel_versions' ->> wanted.channel and b.type <> 'empty'
        )
    )
    from checkpoints c
    where c.thread_id = %(thread)s and c.checkpoint_ns = %(ns)s and c.checkpoint_id = any(%(ids)s)
    union
    select c.checkpoint_id, c.parent_checkpoint_id, array(
        select wanted.channel from unnest(walk.lacks) as wanted (channel)
        where coalesce(c.checkpoint -> 'channel_values' -> wanted.channel, 'null') = 'null'
          and not exists (
            select from checkpoint_blobs b
            where b.thread_id = c.thread_id and b.checkpoint_ns = c.checkpoint_ns and b.channel = wanted.channel
              and b.version = c.checkpoint -> 'channel_versions' ->> wanted.channel and b.type <> 'empty'
        )
    )
    from walk
    cross join lateral (
        select * from checkpoints
        where thread_id = %(thread)s and checkpoint_ns = %(ns)s and checkpoint_id = walk.parent_checkpoint_id
        limit 1
    ) as c
    where cardinality(walk.lacks) > 0
)
select checkpoint_id, lacks from walk
