-- Deletes checkpoints of a namespace. Returns what channels and versions they named.
with deleted as (
    delete from checkpoints
    where thread_id = %(thread)s and checkpoint_ns = %(ns)s and checkpoint_id = any(%(ids)s)
    returning checkpoint -> 'channel_versions' as versions
)
select distinct named.key as channel, named.value as version
from deleted cross join lateral jsonb_each_text(deleted.versions) as named
