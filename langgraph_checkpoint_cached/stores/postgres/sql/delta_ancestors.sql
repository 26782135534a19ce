-- A checkpoint, and its ancestors back to the nearest that has a value stored for each of the channels that have a
-- version but no value in it: what those `DeltaChannel`s are rebuilt from. Nearest first; `lacks` are the channels for
-- which the way goes on. Deduplicated, so that it ends even if rows name each other as parents.
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
