-- Processes: who may serve from Redis, from which one, and up to which write each has invalidated what is stale.

-- name: create_processes
-- Create the table of processes. The row whose owner is '' is the prefix's own: it names the server epoch of Redis
-- that is registered. `beat_at` tells nobody's rights, which end by the clock of their own process.
create table if not exists checkpoint_cache_processes (
    prefix text not null, -- of the keys in Redis
    owner text not null, -- token of the process
    epoch text not null, -- server epoch that the process knows, or that is registered
    term bigint not null default 0, -- number of the registration
    former text[] not null default '{}', -- server epochs that were registered before, the last one first
    serves boolean not null default false, -- whether the process may serve from Redis
    since timestamptz not null default clock_timestamp(), -- when it began to
    lacks_redis boolean not null default false, -- whether the process writes to Postgres alone
    asked bigint not null default 0, -- of the prefix: how often processes were asked to look for stale threads
    answered bigint not null default 0, -- number of the last such question that the process has answered
    beat bigint not null default 0, -- number of the last heartbeat
    beat_at timestamptz not null default clock_timestamp(),
    primary key (prefix, owner)
) with (fillfactor = 50)

-- name: beat
-- Renew the row of a process, and tell what is registered, asked and stale, in one snapshot. `announced` tells whether
-- the last heartbeat is in that snapshot, and recent; and, where another process lacks Redis, older than a second: that
-- one need not look again for so long. A heartbeat that arrives after a later one changes nothing. It need not be
-- durable.
with own as (
    insert into checkpoint_cache_processes as p (prefix, owner, epoch, serves, lacks_redis, beat)
    values (%(prefix)s, %(owner)s, %(epoch)s, %(serves)s, %(lacks_redis)s, %(beat)s)
    on conflict (prefix, owner) do update
    set epoch = excluded.epoch, serves = excluded.serves, lacks_redis = excluded.lacks_redis,
        since = case when p.serves and p.beat_at > clock_timestamp() - interval '1 second' then p.since
            else excluded.since end,
        beat = excluded.beat, beat_at = excluded.beat_at
    where p.beat < excluded.beat
), others as (
    select coalesce(bool_or(serves), false) as serve, coalesce(bool_or(lacks_redis), false) as lack_redis
    from checkpoint_cache_processes
    where prefix = %(prefix)s and owner not in ('', %(owner)s) and beat_at > clock_timestamp() - interval '3 seconds'
)
select set_config('synchronous_commit', 'off', true),
    registered.epoch as registered, registered.term, registered.asked,
    coalesce(
        before.serves and before.beat_at > clock_timestamp() - interval '1 second'
        and (not others.lack_redis or before.since < clock_timestamp() - interval '1 second'),
        false
    ) as announced,
    coalesce(before.lacks_redis, false) as had_said, others.serve as others_serve,
    stale.threads, stale.marks
from others cross join (
    select coalesce(array_agg(thread_id), '{}') as threads, coalesce(array_agg(mark), '{}') as marks
    from (
        select thread_id, mark from checkpoint_cache_stale_threads
        where prefix = %(prefix)s order by thread_id limit %(limit)s
    ) as page
) as stale
left join checkpoint_cache_processes as registered on registered.prefix = %(prefix)s and registered.owner = ''
left join checkpoint_cache_processes as before on before.prefix = %(prefix)s and before.owner = %(owner)s

-- name: answer
-- Note that a process has invalidated all that was stale when so many questions had been asked.
with own as (
    update checkpoint_cache_processes set answered = greatest(answered, %(asked)s)
    where prefix = %(prefix)s and owner = %(owner)s
)
select set_config('synchronous_commit', 'off', true)

-- name: ask
-- Ask all processes to look for stale threads, if any of them serves. Return the number of the question.
with asked as (
    update checkpoint_cache_processes set asked = asked + 1
    where prefix = %(prefix)s and owner = '' and exists (
        select from checkpoint_cache_processes
        where prefix = %(prefix)s and owner <> '' and serves and beat_at > clock_timestamp() - interval '3 seconds'
    )
    returning asked
)
select set_config('synchronous_commit', 'off', true), asked, pg_notify(%(channel)s, '') from asked

-- name: find_answers
-- Tell which question was answered last, and whether anybody still serves.
select coalesce(max(answered), 0) as answered,
    coalesce(bool_or(serves and beat_at > clock_timestamp() - interval '3 seconds'), false) as is_any_serving
from checkpoint_cache_processes where prefix = %(prefix)s and owner <> ''

-- name: find_epoch
-- Tell which server epoch is registered, whether this one was before, and whether a process serves from another.
select r.epoch as registered, r.term, %(epoch)s = any(r.former) as was_registered,
    exists (
        select from checkpoint_cache_processes as p
        where p.prefix = %(prefix)s and p.owner not in ('', %(owner)s) and p.epoch <> %(epoch)s and p.serves
        and p.beat_at > clock_timestamp() - interval '3 seconds'
    ) as is_another_used
from checkpoint_cache_processes as r where r.prefix = %(prefix)s and r.owner = ''

-- name: register_epoch
-- Register a server epoch in place of that which was seen, or where there was none.
insert into checkpoint_cache_processes as r (prefix, owner, epoch) values (%(prefix)s, '', %(epoch)s)
on conflict (prefix, owner) do update
set epoch = excluded.epoch, term = r.term + 1, former = (r.epoch || array_remove(r.former, excluded.epoch))[1:100]
where r.epoch = %(seen)s

-- name: leave
-- Delete the row of a process that ends, and rows of those that ended long ago.
delete from checkpoint_cache_processes where prefix = %(prefix)s and owner <> '' and (
    owner = %(owner)s or beat_at < clock_timestamp() - interval '1 hour'
)
