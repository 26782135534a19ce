-- The channels and versions that a namespace's checkpoints name.
select distinct named.key as channel, named.value as version
from checkpoints c cross join lateral jsonb_each_text(c.checkpoint -> 'channel_versions') as named
where c.thread_id = %(thread)s and c.checkpoint_ns = %(ns)s
